"""Commands that have moved, for one release: old words still work, or name the new ones.

translated(["serve", "--make-key", "ci", "--keys", "keys.json"])      # ["keys", "add", "ci", "--keys", "keys.json"]
"""

from __future__ import annotations

import sys

import typer
from typer.core import TyperGroup

from ..errors import RoadkitError

MAKE_KEY = "--make-key"


class Verbs(TyperGroup):
    """The verbs of `roadkit`, which know where old ones went."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        return super().parse_args(ctx, translated(args))


def translated(words: list[str]) -> list[str]:
    """The words of a command line, those of a command that moved replaced. Raises `RoadkitError` for one that left the package."""
    if words[:1] == ["reproduce"]:
        rest = " ".join(words[1:]) or "--help"
        raise RoadkitError(
            f"the paper's experiments are no longer part of the package; in a checkout: python -m paper {rest}"
        )
    if words[:1] == ["serve"] and any(word.partition("=")[0] == MAKE_KEY for word in words):
        moved = _key_words(words[1:])
        print(f"`roadkit serve {MAKE_KEY}` goes away with the next release: roadkit {' '.join(moved)}", file=sys.stderr)
        return moved
    return words


def _key_words(words: list[str]) -> list[str]:
    name, rest = "", []
    waiting = iter(words)
    for word in waiting:
        option, equals, value = word.partition("=")
        if option == MAKE_KEY:
            name = value if equals else next(waiting, "")
        elif word.startswith("-") or rest:  # before the options stands the base model, which a key does not need
            rest.append(word)
    return ["keys", "add", *([name] if name else []), *rest]
