"""How the rows of a step's adapters share passes of the base: cut into micro-batches, grouped by width.

batches = micro_batches(member, next(member.batches))
for group in passes(batches): ...            # list[MicroBatch], of like width, at most MAX_TOKENS together
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.tokens import IGNORED
from .member import Member

MAX_TOKENS = 4096  # of one pass (or one row), padding included; a step with more takes several, to the same gradients
Rows = list[Mapping[str, Any]]


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one adapter that go through the base together.

    num_targets     tokens of these rows that bear the loss
    step_targets    tokens of all the adapter's rows in this step that do
    """

    member: Member
    rows: Rows
    num_targets: int
    step_targets: int

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(len(row["input_ids"]) for row in self.rows)


def micro_batches(member: Member, rows: Rows) -> list[MicroBatch]:
    """A step's rows of one adapter, each part within `MAX_TOKENS` (one row at least)."""
    parts = [(part, sum(map(_num_targets, part))) for part in _cut(rows)]
    step_targets = sum(count for _, count in parts)
    return [MicroBatch(member, part, count, step_targets) for part, count in parts]


def passes(batches: Sequence[MicroBatch]) -> Iterator[list[MicroBatch]]:
    """Micro-batches of like width together, each pass within `MAX_TOKENS` (one micro-batch at least)."""
    group: list[MicroBatch] = []
    for batch in sorted(batches, key=lambda batch: batch.width):
        if group and sum(len(each.rows) for each in [*group, batch]) * batch.width > MAX_TOKENS:
            yield group
            group = []
        group.append(batch)
    yield group


def _cut(rows: Rows) -> Iterator[Rows]:
    part: Rows = []
    width = 0
    for row in rows:
        length = len(row["input_ids"])
        width = max(width, length)
        if part and (len(part) + 1) * width > MAX_TOKENS:
            yield part
            part, width = [], length
        part.append(row)
    yield part


def _num_targets(row: Mapping[str, Any]) -> int:
    """Tokens that bear the loss; the first has nothing before it that could predict it."""
    return sum(label != IGNORED for label in row["labels"][1:])
