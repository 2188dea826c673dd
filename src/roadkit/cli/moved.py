"""Commands that have moved, for one release: old words still work, or name the new ones.

translated(["serve", "--make-key", "ci", "--keys", "keys.json"])      # ["keys", "add", "ci", "--keys", "keys.json"]
"""

from __future__ import annotations

import itertools
import sys

import typer
from typer.core import TyperGroup

from ..errors import RoadkitError

MAKE_KEY = "--make-key"
KEY_OPTIONS = (
    "--keys", "--tenant", "--requests-per-minute", "--tokens-per-minute", "--concurrency", "--live-expressions",
)  # fmt: skip


class Verbs(TyperGroup):
    """The verbs of `roadkit`, which know where old ones went."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        return super().parse_args(ctx, translated(args))


def translated(words: list[str]) -> list[str]:
    """The words of a command line, those of a command that moved replaced. Raises `RoadkitError` for one that left the package."""
    flags = list(itertools.takewhile(lambda word: word.startswith("-"), words))
    verb, *rest = words[len(flags) :] or [""]
    if verb == "reproduce":
        raise RoadkitError(
            "the paper's experiments are no longer part of the package; in a checkout: python -m paper "
            + (" ".join(rest) or "--help")
        )
    if verb == "serve" and any(word.partition("=")[0] == MAKE_KEY for word in rest):
        moved = _key_words(rest)
        print(f"`roadkit serve {MAKE_KEY}` goes away with the next release: roadkit {' '.join(moved)}", file=sys.stderr)
        return [*flags, *moved]
    return words


def _key_words(words: list[str]) -> list[str]:
    """Those words that a key needs; whatever else `serve` was told, it did not read beside `--make-key`."""
    kept: dict[str, list[str]] = {}
    waiting = iter(words)
    for word in waiting:
        option, equals, value = word.partition("=")
        if option == "--admin":
            kept[option] = []
        elif option in (MAKE_KEY, *KEY_OPTIONS):
            kept[option] = [value if equals else next(waiting, "")]
    names = kept.pop(MAKE_KEY)
    return ["keys", "add", *filter(None, names), *(word for option, own in kept.items() for word in (option, *own))]
