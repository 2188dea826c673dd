"""`BankLayer`: one layer's share of a bank's buffer; as a forward hook it rotates the layer's output.

current = CurrentRows()
layer = BankLayer("model.layers.0.self_attn.q_proj", module, width=576, current=current)
layer.point_at(buffer)
module.register_forward_hook(layer)
with current.using(slots): model(ids)
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ... import modules
from ...errors import AdapterError
from ...intervene.sites import hidden_of, with_hidden
from ...kernels import native, rotate_rows
from .buffer import RowBuffer


class CurrentRows:
    """By which slots the running forward pass rotates; all layers of a bank read the same object.

    linear  for the outputs of linear layers, int64: [samples], or [1, tokens]; None: none of them is rotated
    sites   for hidden states, likewise
    """

    def __init__(self) -> None:
        self.linear: Tensor | None = None
        self.sites: Tensor | None = None

    @contextmanager
    def using(self, linear: Tensor | None, sites: Tensor | None = None) -> Iterator[None]:
        """Rotate by these for the length of a block; afterwards by what was there before."""
        previous = self.linear, self.sites
        self.linear, self.sites = linear, sites
        try:
            yield
        finally:
            self.linear, self.sites = previous


class BankLayer:
    """One layer of the model, and where its a and b lie.

    a [slots, d], b [sizes, slots, d] are columns of the bank's buffer. `rotations` is what the C kernels read of them; it
    stays one object, so that what points at it need not be told when the bank grows.
    """

    def __init__(self, name: str, module: nn.Module, width: int, current: CurrentRows):
        self.name, self.module, self.width, self.current = name, module, width, current
        self.is_site = modules.width_of(module) is None  # a block, attention or MLP: hidden states, at some positions
        self.a = self.b = Tensor()
        self.group_sizes: tuple[int, ...] = ()
        self.rotations = native.Rotations()

    def point_at(self, buffer: RowBuffer) -> None:
        """Read the layer's columns of the buffer from now on."""
        columns = buffer.rows[:, :, buffer.layout.spans[self.name]]
        self.a, self.b = columns[:, 0], columns[:, 1:].transpose(0, 1)
        # a plane whose pairing does not fit this layer holds zeros here; any pairing that fits does for it
        self.group_sizes = tuple(size if self.width % size == 0 else 2 for size in buffer.group_sizes)
        if buffer.rows.is_cpu:
            ctypes.pointer(self.rotations)[0] = native.rotations_of(self.a, self.b, self.group_sizes)

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if self.is_site:
            rows = self.current.sites
            if rows is None:
                return output
            return with_hidden(output, rotate_rows(hidden_of(output), rows, self.a, self.b, self.group_sizes))
        rows = self.current.linear
        if rows is None:
            return output
        if isinstance(output, tuple):  # a layer that returns its bias instead of adding it
            raise AdapterError(f"{self.name} returns its bias apart; mixed batches need it added")
        if rows.numel() == output.shape[:-1].numel():  # a row a token: some layers see [tokens, d], not [1, tokens, d]
            rows = rows.view(output.shape[:-1])
        return rotate_rows(output, rows, self.a, self.b, self.group_sizes)
