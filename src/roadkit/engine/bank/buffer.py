"""`RowBuffer`: the memory of a bank, one row a slot.

    buffer = RowBuffer(num_slots=64, device=model.device)
    buffer.grow({"model.layers.0.mlp.up_proj": 1536}, (64,), keep=())
    buffer.write(1, adapter)            # one copy for a whole model

A row holds a, and one plane of b for each group size, over all rotated layers laid end to end.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from ...adapter import Adapter
from ...layout import Layout
from .slots import IDENTITY


class RowBuffer:
    """`rows` [1 + num_slots, 1 + sizes, width] float32; the row of slot `IDENTITY` is a = 1, b = 0.

    layout       where each layer lies along `width`
    group_sizes  the pairing of each plane of b
    """

    def __init__(self, num_slots: int, device: torch.device):
        self.num_slots, self.device = num_slots, device
        self.layout = Layout({})
        self.group_sizes: tuple[int, ...] = ()
        self.rows = torch.empty(0)

    def grow(self, widths: Mapping[str, int], group_sizes: tuple[int, ...], *, keep: Collection[int]) -> None:
        """Make room for all layers of `widths` and all of `group_sizes`; what the slots `keep` hold is moved over."""
        old_layout, old_sizes, old = self.layout, self.group_sizes, self.rows
        # one nominal group size orders the bank by name, as a whole-model adapter of one group size is ordered
        self.layout = Layout({name: (width, 2) for name, width in widths.items()})
        self.group_sizes = group_sizes
        self.rows = torch.empty(self.num_slots + 1, 1 + len(group_sizes), self.layout.width, device=self.device)
        for slot in (IDENTITY, *keep):
            self._clear(slot)
        for slot in keep:
            for name, span in old_layout.spans.items():
                target = self.layout.spans[name]
                self.rows[slot, 0, target] = old[slot, 0, span]
                for plane, size in enumerate(old_sizes, 1):
                    self.rows[slot, 1 + self.group_sizes.index(size), target] = old[slot, plane, span]

    def write(self, slot: int, adapter: Adapter) -> None:
        """Put an adapter, whose layers and group sizes the buffer has, into a slot."""
        row = self.rows[slot]
        if adapter.layout.spans == self.layout.spans and len(self.group_sizes) == 1:
            row[0], row[1] = adapter.a, adapter.b
            return
        self._clear(slot)
        for name in adapter.layout.layers:
            a, b, group_size = adapter.layer(name)
            span = self.layout.spans[name]
            row[0, span], row[1 + self.group_sizes.index(group_size), span] = a, b

    def _clear(self, slot: int) -> None:
        self.rows[slot] = 0
        self.rows[slot, 0] = 1
