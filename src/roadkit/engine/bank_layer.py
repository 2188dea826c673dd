"""`BankLayer`: one layer's share of a bank's buffer, and the forward hook that rotates by the bank's current rows.

layer = BankLayer(bank, "model.layers.0.self_attn.q_proj", module, width=576)
layer.bind(buffer, start, group_sizes)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from .. import modules
from ..errors import AdapterError
from ..intervene.sites import hidden_of, with_hidden
from ..kernels.rows import native_rotations, rotate_rows

if TYPE_CHECKING:
    from .bank import Bank


class BankLayer:
    """One layer's share of the buffer; as a forward hook it rotates the layer's output by the bank's current rows."""

    def __init__(self, bank: Bank, name: str, module: nn.Module, width: int):
        self.bank, self.name, self.module, self.width = bank, name, module, width
        self.is_site = modules.width_of(module) is None  # a block, attention or MLP: hidden states, at some positions

    def bind(self, buffer: Tensor, start: int, group_sizes: tuple[int, ...]) -> None:
        """Point at columns [start, start + width) of the buffer [slots, 1 + sizes, total]."""
        columns = buffer[:, :, start : start + self.width]
        self.a, self.b = columns[:, 0], columns[:, 1:].transpose(0, 1)
        # a plane whose pairing does not fit this layer holds zeros here; any pairing that fits does for it
        self.group_sizes = group_sizes = tuple(size if self.width % size == 0 else 2 for size in group_sizes)
        self.native = native_rotations(self.a, self.b, group_sizes) if buffer.device.type == "cpu" else None

    def __call__(self, module: nn.Module, args: tuple, output):
        if self.is_site:
            rows = self.bank.current_sites
            if rows is None:
                return output
            h = rotate_rows(hidden_of(output), rows, self.a, self.b, self.group_sizes)
            return with_hidden(output, h)
        if self.bank.current is None:
            return output
        if isinstance(output, tuple):  # a layer that returns its bias instead of adding it
            raise AdapterError(f"{self.name} returns its bias apart; mixed batches need it added")
        rows = self.bank.current
        if rows.numel() == output.shape[:-1].numel():  # a row a token: some layers see [tokens, d], not [1, tokens, d]
            rows = rows.view(output.shape[:-1])
        return rotate_rows(output, rows, self.a, self.b, self.group_sizes)
