"""`Positions`: at which tokens an intervention acts.

    Positions.parse("last:1")            # the prompt's last token; "first:3", "first:3+last:1", "prompt", "all", "at:0,5,-1"
    Positions.parse("last:1").of_prompt(12) == [11]

`all` is the only choice that acts on generated tokens too; the others act on the prompt and so cost nothing in decoding.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import RequestError

_PART = re.compile(r"(first|last):([0-9]+)|at:(-?[0-9]+(?:,-?[0-9]+)*)")


@dataclass(frozen=True)
class Positions:
    """The first and the last tokens of the prompt, single ones (`at`, negative from the prompt's end), or `every` one.

    every    'no', 'prompt' (all of the prompt's tokens) or 'all' (generated ones too)

    Raises `RequestError` for numbers below zero, and if no token is chosen.
    """

    first: int = 0
    last: int = 0
    at: tuple[int, ...] = ()
    every: str = "no"

    def __post_init__(self) -> None:
        if self.every not in ("no", "prompt", "all"):
            raise RequestError(f"every must be 'no', 'prompt' or 'all', got {self.every!r}")
        if self.first < 0 or self.last < 0:
            raise RequestError(f"first {self.first} and last {self.last} count tokens and cannot be negative")
        if self.every == "no" and not (self.first or self.last or self.at):
            raise RequestError("positions choose no token; write all, prompt, first:K, last:K or at:I,J")

    @classmethod
    def parse(cls, text: str) -> Positions:
        """`all`, `prompt`, or parts `first:K`, `last:K`, `at:I,J` joined by `+`. Raises `RequestError`."""
        if text in ("all", "prompt"):
            return cls(every=text)
        counts: dict[str, int] = {}
        at: list[int] = []
        for part in text.split("+"):
            match = _PART.fullmatch(part.strip())
            if match is None or match[1] in counts:
                raise RequestError(
                    f"positions {text!r}: {part.strip()!r} is not understood here; "
                    "write all, prompt, or first:K, last:K and at:I,J joined by +"
                )
            if match[1]:
                counts[match[1]] = int(match[2])
            else:
                at += [int(number) for number in match[3].split(",")]
        return cls(counts.get("first", 0), counts.get("last", 0), tuple(at))

    def __str__(self) -> str:
        if self.every != "no":
            return self.every
        parts = [f"{name}:{count}" for name, count in (("first", self.first), ("last", self.last)) if count]
        return "+".join([*parts, *(["at:" + ",".join(map(str, self.at))] if self.at else [])])

    @property
    def generated(self) -> bool:
        """Do generated tokens count?"""
        return self.every == "all"

    def of_prompt(self, length: int) -> list[int]:
        """The chosen positions of a prompt of `length` tokens, in order.

        Raises `RequestError` for a prompt shorter than `first` or `last`, and for a single position outside it.
        """
        if self.every != "no":
            return list(range(length))
        short = max(self.first, self.last)
        if short > length:
            which = "first" if self.first >= self.last else "last"
            raise RequestError(f"the prompt has {length} tokens, the intervention acts on its {which} {short}")
        outside = [position for position in self.at if not -length <= position < length]
        if outside:
            raise RequestError(f"position {outside[0]} lies outside the prompt of {length} tokens")
        single = {position % length for position in self.at}
        return sorted({*range(self.first), *range(length - self.last, length), *single})
