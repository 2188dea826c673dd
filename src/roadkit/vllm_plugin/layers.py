"""RoAd inside vLLM's linear layers: the rotation of a layer's output, in the compiled graph.

    bank = WorkerBank(survey(model, group_sizes=(64,)), slots=8, max_tokens=2048, device=device)  # the layers now rotate
    bank.write(1, bank.row(adapter, names))           # an adapter in slot 1
    bank.assign([1, 1, 0])                            # two tokens with it, one of the base model

A layer's rotation stands right behind its matrix product (`quant_method.apply`). So it comes before a row-parallel layer
reduces its partial sums, behind any quantisation, and with the bias inside. The product's weights are never read.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import Adapter
from ..kernels.rows import rotate_rows, rotate_rows_torch
from .sharding import ModelSurvey, ShardedLayer

IDENTITY = 0  # the slot of requests without an adapter; vLLM's own index for them, -1, is never stored
ALIGN = 64  # floats: a layer's share starts at a multiple of 256 bytes, so that CUDA graphs copy no misaligned input


class LayerRotation(nn.Module):
    """One layer's share of the bank. Called with the layer's output [..., d], it returns it rotated.

    planes       [slots, 1 + sizes, d] float32, a view of the bank: a, then one b for each group size
    slots        [max_tokens] int64, the slot of each token of the current step, one tensor for all layers
    group_sizes  of the planes of b
    """

    planes: Tensor
    slots: Tensor

    def __init__(self, planes: Tensor, slots: Tensor, group_sizes: tuple[int, ...]):
        super().__init__()
        # They are buffers, so that the compiler sees inputs of the graph and not constants. They are not persistent, so
        # that neither a checkpoint nor a reload of weights meets them.
        self.register_buffer("planes", planes, persistent=False)
        self.register_buffer("slots", slots, persistent=False)
        self.group_sizes = group_sizes

    def forward(self, h: Tensor) -> Tensor:
        flat = h.view(-1, h.shape[-1])  # vLLM's transformers back end adds a batch dimension of one
        rows = self.slots[: flat.shape[0]]
        a, b = self.planes[:, 0], self.planes[:, 1:].transpose(0, 1)
        # The compiler fuses plain torch with its neighbours. Without it, a fused kernel is faster: C or Triton.
        operator = rotate_rows_torch if torch.compiler.is_compiling() else rotate_rows
        return operator(flat, rows, a, b, self.group_sizes).view(h.shape)


class _Rotated:
    """Mixed into the class of a layer's quantisation method: the same product, then the layer's rotation."""

    def apply(self, layer: Any, *args: Any, **options: Any) -> Tensor:
        product = super().apply(layer, *args, **options)  # type: ignore[misc]  # the other base class has it
        return layer.roadkit_rotation(product)


@functools.cache
def _rotated_class(kind: type) -> type:
    # vLLM asks `isinstance(layer.quant_method, …)`, and for the class's name when it reloads weights: both stay true.
    return type(kind.__name__, (_Rotated, kind), {"__module__": kind.__module__})


def install(layer: Any, rotation: LayerRotation) -> None:
    """Make a vLLM linear layer rotate its output, and a bias that it returns instead of adding.

    What is touched of vLLM: the layer's `quant_method` becomes a copy whose class is extended. The forward method, the
    module tree, the names of weights and the collectives stay as they are.
    """
    layer.roadkit_rotation = rotation
    kind: Any = _rotated_class(type(layer.quant_method))
    method = kind.__new__(kind)  # without its __init__, whose arguments are gone
    vars(method).update(vars(layer.quant_method))
    layer.quant_method = method
    if layer.skip_bias_add and layer.bias is not None:
        layer.register_forward_hook(_rotate_returned_bias)


def _rotate_returned_bias(layer: Any, args: tuple, output: Any) -> Any:
    """Forward hook: (R W x, b) → (R W x, R b), which the caller adds later. The bias becomes one row a token."""
    if not isinstance(output, tuple) or output[1] is None:
        return output
    return output[0], layer.roadkit_rotation(output[1].expand(output[0].shape).contiguous())


class WorkerBank:
    """One worker's bank: a and b of every layer that can rotate, [slots + 2, columns] float32, one row an adapter.

    Slot 0 is the identity. The last slot holds zeros, for a request whose adapter became unreadable while it waited. Such
    a request must be answered neither as the base model would nor as another adapter. NaN would not do: the CPU attention
    kernel multiplies masked keys of reused cache blocks by 0, and NaN would reach other requests.
    """

    def __init__(self, found: ModelSurvey, *, slots: int, max_tokens: int, device: torch.device | str):
        self.found, self.refused = found, slots + 1
        layers = {name: layer for name, layer in found.layers.items() if layer.group_sizes}
        self._starts: dict[str, int] = {}
        columns = 0
        for name, layer in layers.items():
            self._starts[name] = columns
            columns += -(-(1 + len(layer.group_sizes)) * layer.width // ALIGN) * ALIGN
        self.identity = torch.zeros(columns)
        for name, layer in layers.items():
            self._share(self.identity, name, layer)[0] = 1
        self.buffer = self.identity.to(device).repeat(slots + 2, 1)
        self.buffer[self.refused] = 0
        self.slots = torch.zeros(max_tokens, dtype=torch.int64, device=device)
        self._assigned: tuple[int, ...] = ()
        for name, layer in layers.items():
            install(layer.module, LayerRotation(self._share(self.buffer, name, layer), self.slots, layer.group_sizes))

    @property
    def row_bytes(self) -> int:
        """Bytes of one adapter in this worker."""
        return 4 * len(self.identity)

    def row(self, adapter: Adapter, names: Mapping[str, str]) -> Tensor:
        """This worker's row of a checked adapter, [columns] float32.

        names  the adapter's name of a layer → this model's
        """
        row = self.identity.clone()
        for name in adapter.layout.layers:
            a, b, group_size = adapter.layer(name)
            for owner, i in self.found.shards.get(names[name], ()):
                layer = self.found.layers[owner]
                shard, offset = layer.shards[i], sum(other.width for other in layer.shards[:i])
                share = self._share(row, owner, layer)[:, offset : offset + shard.width]
                share[0] = a[shard.start : shard.start + shard.width]
                share[1 + layer.group_sizes.index(group_size)] = b[shard.start : shard.start + shard.width]
        return row

    def write(self, slot: int, row: Tensor) -> None:
        """Activate an adapter with one copy. Steps that were launched before, on the same stream, still read the old row."""
        self.buffer[slot].copy_(row, non_blocking=True)

    def assign(self, slots: Sequence[int]) -> None:
        """Set the slot of each token of the coming step. Entries beyond, for padding, keep valid slots of earlier steps."""
        assigned = tuple(slots)
        if assigned == self._assigned:  # decoding goes on with the same requests
            return
        assert len(assigned) <= len(self.slots), f"{len(assigned)} tokens, vLLM promised at most {len(self.slots)}"
        self.slots[: len(assigned)].copy_(torch.tensor(assigned, dtype=torch.int64), non_blocking=True)
        self._assigned = assigned

    def _share(self, rows: Tensor, name: str, layer: ShardedLayer) -> Tensor:
        """One layer's columns of rows [..., columns], as [..., 1 + sizes, width]."""
        shape = (1 + len(layer.group_sizes), layer.width)
        start = self._starts[name]
        return rows[..., start : start + shape[0] * shape[1]].unflatten(-1, shape)
