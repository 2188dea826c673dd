"""RoAd inside vLLM's linear layers: the rotation of a layer's output, in the compiled graph.

    bank = Bank(model, slots=8, max_tokens=2048, group_sizes=(64,), device=device)   # every linear layer now rotates
    bank.write(1, row)                                                                # an adapter in slot 1
    bank.assign([1, 1, 0])                                                            # two of its tokens, a base one

A layer's rotation stands right behind its matrix product (`quant_method.apply`): before a row-parallel layer reduces
its partial sums, behind any quantisation, and with the bias inside. The product's weights are never read.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import rotate_rows, rotate_rows_torch
from .sharding import Part

IDENTITY = 0  # the slot of requests without an adapter; vLLM's own index for them, -1, is never stored
ALIGN = 64  # floats; a layer's share starts at 256 bytes, where CUDA kernels need no copy of a misaligned input


class Rotation(nn.Module):
    """One layer's share of the bank. Called with the layer's output [..., d], it returns it rotated.

    planes  [slots, 1 + sizes, d] float32, a view of the bank: a, then one b for each group size
    slots   [max_tokens] int64, the slot of each token of the current step, one tensor for all layers
    """

    planes: Tensor
    slots: Tensor

    def __init__(self, planes: Tensor, slots: Tensor, group_sizes: tuple[int, ...]):
        super().__init__()
        # Buffers, so that the compiler sees inputs of the graph and not constants; non-persistent, so that neither a
        # checkpoint nor a reload of weights meets them.
        self.register_buffer("planes", planes, persistent=False)
        self.register_buffer("slots", slots, persistent=False)
        self.group_sizes = group_sizes

    def forward(self, h: Tensor) -> Tensor:
        flat = h.view(-1, h.shape[-1])  # vLLM's transformers back end adds a batch dimension of one
        rows = self.slots[: flat.shape[0]]
        a, b = self.planes[:, 0], self.planes[:, 1:].transpose(0, 1)
        if torch.compiler.is_compiling():  # plain torch: the compiler fuses it with what follows
            z = rotate_rows_torch(flat, rows, a, b, self.group_sizes)
        else:
            z = rotate_rows(flat, rows, a, b, self.group_sizes)
        return z.view(h.shape)


class _Rotated:
    """Mixed into the class of a layer's quantisation method: the same product, then the layer's rotation."""

    def apply(self, layer: Any, *args: Any, **kwargs: Any) -> Tensor:
        return layer.roadkit_rotation(super().apply(layer, *args, **kwargs))  # type: ignore[misc]


@functools.cache
def _rotated_class(kind: type) -> type:
    # vLLM asks `isinstance(layer.quant_method, …)` and compares class names when it reloads weights: keep both true
    return type(kind.__name__, (_Rotated, kind), {"__module__": kind.__module__})


def install(layer: Any, rotation: Rotation) -> None:
    """Make a vLLM linear layer rotate its output, and a bias that it returns instead of adding.

    The touch of vLLM: one attribute of the layer, `quant_method`, becomes a copy whose class is extended. All of
    vLLM's forward methods go through it (`sharding.UNDERSTOOD` holds the ones that were read); the module tree, the
    names of weights and the collectives stay as they are.
    """
    layer.roadkit_rotation = rotation
    method = copy.copy(layer.quant_method)
    method.__class__ = _rotated_class(type(method))
    layer.quant_method = method
    if layer.skip_bias_add and layer.bias is not None:
        layer.register_forward_hook(_rotate_returned_bias)


def _rotate_returned_bias(layer: Any, args: tuple, output: Any) -> Any:
    """(Wx, b) → (R W x, R b): the caller adds them later. The bias becomes one row a token."""
    if not isinstance(output, tuple) or output[1] is None:
        return output
    z, bias = output
    return z, layer.roadkit_rotation(bias.expand(z.shape).contiguous())


class Bank:
    """Every adapted layer's a and b for every slot, [slots + 2, columns] float32, one contiguous row an adapter.

    Slot 0 is the identity; the last slot holds NaN, for a request whose adapter has become unreadable: it must not be
    answered as if by the base model or by another adapter.
    """

    def __init__(
        self,
        layers: Sequence[tuple[Any, Sequence[Part], tuple[int, ...]]],
        *,
        slots: int,
        max_tokens: int,
        device: torch.device,
    ):
        self.refused = slots + 1
        self.columns: dict[str, tuple[int, int, int, tuple[int, ...]]] = {}  # part → start, layer's width, offset, sizes
        starts, total = [], 0
        for _, parts, sizes in layers:
            width = sum(part.width for part in parts)
            starts.append(total)
            offset = 0
            for part in parts:
                for name in part.names:
                    self.columns[name] = (total, width, offset, sizes)
                offset += part.width
            total += -(-(1 + len(sizes)) * width // ALIGN) * ALIGN
        self.identity = torch.zeros(total)
        for (_, parts, _), start in zip(layers, starts, strict=True):
            self.identity[start : start + sum(part.width for part in parts)] = 1
        self.buffer = self.identity.to(device).repeat(slots + 2, 1)
        self.buffer[self.refused] = torch.nan
        self.slots = torch.zeros(max_tokens, dtype=torch.int64, device=device)
        self._assigned: tuple[int, ...] | None = None
        for (layer, parts, sizes), start in zip(layers, starts, strict=True):
            width = sum(part.width for part in parts)
            share = self.buffer[:, start : start + (1 + len(sizes)) * width].unflatten(1, (1 + len(sizes), width))
            install(layer, Rotation(share, self.slots, sizes))

    @property
    def row_bytes(self) -> int:
        """Bytes that one adapter takes on this shard."""
        return 4 * self.buffer.shape[1]

    def place(self, row: Tensor, name: str, a: Tensor, b: Tensor, group_size: int) -> None:
        """Write one layer's shard of a and b into a row that started as a copy of `identity`."""
        start, width, offset, sizes = self.columns[name]
        row[start + offset : start + offset + len(a)] = a
        plane = start + (1 + sizes.index(group_size)) * width + offset
        row[plane : plane + len(b)] = b

    def write(self, slot: int, row: Tensor) -> None:
        """Activate an adapter: one copy. Steps already launched read the old row, since the stream is one."""
        self.buffer[slot].copy_(row, non_blocking=True)

    def assign(self, slots: Sequence[int]) -> None:
        """Say which slot each token of the coming step uses. What lies beyond keeps valid slots from before."""
        assigned = tuple(slots)
        if assigned == self._assigned:  # decoding goes on with the same requests
            return
        if len(assigned) > len(self.slots):
            raise AssertionError(f"a step of {len(assigned)} tokens, but vLLM promised at most {len(self.slots)}")
        self.slots[: len(assigned)].copy_(torch.tensor(assigned, dtype=torch.int64), non_blocking=True)
        self._assigned = assigned
