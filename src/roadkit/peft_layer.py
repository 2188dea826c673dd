"""roadkit's trainable layer: a linear layer whose outputs PEFT's RoAd adapters rotate.

    enable_peft()                                           # `roadkit.peft_tuner` makes PEFT build it
    layer = RoadLinear(nn.Linear(64, 64), "default", RoadConfig(variant="road_1", group_size=64))

It rotates outputs and never reads the base weights, so they may be quantised. Merging writes the base weights, and is
refused if they are quantised. Merging computes in float32 and rounds once: unmerged 16-bit weights are right to one
rounding of the storage, not bit for bit. `roadkit.merge` keeps the originals for that.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import NamedTuple

import torch
from peft import RoadConfig
from peft.tuners.road import RoadLayer
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .errors import AdapterError, AlgebraError, ModelError
from .kernels.gradient import rotate_trainable
from .kernels.rows import rotate_rows, rotate_rows_torch
from .matrices import inverse
from .merging import rotate_matrix_
from .modules import is_conv1d, width_of
from .rotation import lower

Vectors = tuple[Tensor, Tensor, int]  # a, b, group size


class LoweredRows(NamedTuple):
    """What a layer rotates the rows of a mixed batch by; its fields are `rotate_rows`'s arguments after h.

    rows         [batch] int64, the slot of each row; slot 0 is the identity
    a            [slots, d] float32
    b            [sizes, slots, d] float32
    group_sizes  one for each plane of b
    """

    rows: Tensor
    a: Tensor
    b: Tensor
    group_sizes: tuple[int, ...]


class MixedBatch(list[str]):
    """The `adapter_names` of a batch, one a row, and for each layer what it lowered for them (None: nothing to do).

    It lives as long as one call of `forward` or `generate`, so no change of a parameter can leave it stale.
    """

    def __init__(self, names: Iterable[str]):
        super().__init__(names)
        self.lowered: dict[nn.Module, LoweredRows | None] = {}


class RoadLinear(nn.Module, RoadLayer):
    """A linear layer whose outputs are rotated: z = R (W x + bias). Holds any number of adapters."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: RoadConfig):
        super().__init__()
        # RoadLayer accepts nn.Linear alone; a stand-in of the same size lets it serve every other linear layer
        RoadLayer.__init__(self, nn.Linear(*_sizes(innermost(base_layer)), device="meta"))
        self.base_layer = base_layer
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config=config)

    def forward(self, x: Tensor, *args, adapter_names: list[str] | None = None, **kwargs) -> Tensor:
        """x [..., in] → [..., d]. `adapter_names` gives each row of the batch its own adapter, or "__base__"."""
        if adapter_names is not None:
            self._check_names(x, adapter_names)
        if self.disable_adapters and self.merged:
            self.unmerge()
        h = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return h
        if adapter_names is not None:
            return self._rotate_rows(h, adapter_names)
        if self.training and x.requires_grad and not h.requires_grad and torch.is_grad_enabled():
            raise ModelError(
                f"the base layer ({_storage_of(self)} weights) passes no gradient back to its input, so the layers "
                "before it would silently not train; quantise the weights alone, not the activations"
            )
        reuse = _is_ours_alone(self.base_layer)
        for name in self.active_adapters:
            if name in self.road_theta:
                h = rotate_trainable(
                    h,
                    self.road_theta[name],
                    self.road_alpha[name],
                    variant=self.variant[name],
                    group_size=self.group_size[name],
                    reuse=reuse,
                )
                reuse = False  # the backward pass of the first adapter may hold its output
        return h

    def _check_names(self, x: Tensor, names: list[str]) -> None:
        if len(x) != len(names):
            raise AdapterError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(names)} and {len(x)} respectively."
            )
        if self.merged:
            raise AdapterError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )

    def _rotate_rows(self, h: Tensor, names: list[str]) -> Tensor:
        """Rotate every row by its own adapter, whatever their number and kinds: one gather, two multiplications."""
        trains = torch.is_grad_enabled() and (h.requires_grad or any(p.requires_grad for p in self.road_theta.values()))
        known = names.lowered if isinstance(names, MixedBatch) and not trains else {}
        if self not in known:
            known[self] = self._lower_rows(names, h.device)
        lowered = known[self]
        if lowered is None:
            return h
        if trains or lowered.a.dtype != torch.float32:
            return rotate_rows_torch(h, *lowered)
        return rotate_rows(h, *lowered)

    def _lower_rows(self, names: list[str], device: torch.device) -> LoweredRows | None:
        """None if no row's adapter rotates this layer."""
        used = sorted(set(names) & self._available_adapters)
        kinds = sorted({(self.variant[name], self.group_size[name]) for name in used})
        if not used:
            return None
        slots: dict[str, int] = {}
        vectors: list[Vectors] = []  # one entry a kind, its adapters lowered in one call: [adapters, d]
        for kind in kinds:
            members = [name for name in used if (self.variant[name], self.group_size[name]) == kind]
            slots |= {name: len(slots) + i + 1 for i, name in enumerate(members)}
            theta = torch.cat([self.road_theta[name] for name in members]).to(device)
            alpha = torch.cat([self.road_alpha[name] for name in members]).to(device)
            a, b = lower(kind[0], theta, alpha, kind[1])
            vectors.append((a.view(len(members), -1), b.view(len(members), -1), kind[1]))
        sizes = tuple(sorted({size for _, _, size in vectors}))
        one = torch.ones_like(vectors[0][0][:1])
        planes = [
            torch.cat([torch.zeros_like(one), *(b if size == own else torch.zeros_like(b) for _, b, own in vectors)])
            for size in sizes
        ]
        rows = torch.tensor([slots.get(name, 0) for name in names], device=device)
        return LoweredRows(rows, torch.cat([one, *(a for a, _, _ in vectors)]), torch.stack(planes), sizes)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Rotate the rows of the base weights in place, O(d·k), by the named adapters in turn.

        safe_merge     refuse an adapter whose result is not finite, before anything is changed
        adapter_names  by default the active adapters

        Raises `ModelError` if the weights are quantised, `AdapterError` for what `safe_merge` refuses.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.road_theta]
        if not names:
            return
        if reason := why_not_mergeable(self):
            raise ModelError(f"cannot merge {', '.join(names)}: {reason}")
        self._rotate_weights([self._lowered(name) for name in names], check=", ".join(names) if safe_merge else None)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Undo every merge by the block inverses. Raises `AlgebraError` if a block has none; nothing is changed then."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self._rotate_weights(self.inverses())
        self.merged_adapters.clear()

    def inverses(self) -> list[Vectors]:
        """What undoes the merged adapters, the last first. Raises `AlgebraError` naming one that cannot be undone."""
        inverses = []
        for name in reversed(self.merged_adapters):
            if name in self.road_theta:
                a, b, size = self._lowered(name)
                try:
                    inverses.append((*inverse(a, b, size), size))
                except AlgebraError as error:
                    raise AlgebraError(f"adapter {name!r}, pair {error.pair}: {error}", pair=error.pair) from None
        return inverses

    def _lowered(self, name: str) -> Vectors:
        theta, alpha, size = self.road_theta[name].data, self.road_alpha[name].data, self.group_size[name]
        return *lower(self.variant[name], theta, alpha, size), size

    def _rotate_weights(self, rotations: list[Vectors], check: str | None = None) -> None:
        layer = self.get_base_layer()
        weight = layer.get_parameter("weight").data
        bias = getattr(layer, "bias", None)
        stored = [weight.t() if is_conv1d(layer) else weight]  # [d, k]
        stored += [] if bias is None else [bias.data.unsqueeze(1)]
        # only a float32 matrix that needs no check is turned where it lies; others are rounded, or checked, once
        wide = [matrix if matrix.dtype == torch.float32 and check is None else _widened(matrix) for matrix in stored]
        for matrix in wide:
            for a, b, size in rotations:
                rotate_matrix_(matrix, a, b, size)
        if check is not None and not all(matrix.isfinite().all() for matrix in wide):
            raise AdapterError(f"NaNs detected in the merged weights. The adapter {check} seems to be broken")
        for matrix, result in zip(stored, wide, strict=True):
            if result is not matrix:
                matrix.copy_(result)

    def __repr__(self) -> str:
        return "road." + super().__repr__()


def why_not_mergeable(layer: RoadLinear) -> str | None:
    """The reason why this layer's base weights cannot be rotated in place, or None."""
    weight = getattr(layer.get_base_layer(), "weight", None)
    if isinstance(weight, nn.Parameter) and type(weight.data) is Tensor:
        if weight.is_floating_point() and weight.itemsize > 1:
            return None
    return (
        f"base weights stored as {_storage_of(layer)} would be rounded again; "
        "keep the adapter beside them, or merge it into the float model and quantise that"
    )


def _storage_of(layer: RoadLinear) -> str:
    """How the base weights are stored, in a word: float32, int8, Int8Tensor, or the class of a layer that packs them."""
    weight = getattr(layer.get_base_layer(), "weight", None)
    if not isinstance(weight, Tensor):
        return type(layer.get_base_layer()).__name__
    return str(weight.dtype).removeprefix("torch.") if type(weight.data) is Tensor else type(weight.data).__name__


def _is_ours_alone(layer: nn.Module) -> bool:
    """May this layer's output be overwritten? Not if a hook, a wrapper or a dispatch mode may still hold it."""
    watched = layer._forward_hooks or global_hooks._global_forward_hooks or "forward" in vars(layer)
    plain = type(layer) is nn.Linear and type(layer.weight) is nn.Parameter
    return plain and not watched and not is_in_torch_dispatch_mode()


def innermost(module: nn.Module) -> nn.Module:
    """The linear layer itself, if PEFT's layers are wrapped around it."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer of any kind; transformers' Conv1D keeps its weight as [in, out]."""
    num_inputs, width = getattr(layer, "in_features", None), width_of(layer)
    assert width is not None, f"{type(layer).__name__} is no linear layer"
    return num_inputs if isinstance(num_inputs, int) else layer.get_parameter("weight").shape[0], width


def _widened(matrix: Tensor) -> Tensor:
    return matrix.to(torch.promote_types(matrix.dtype, torch.float32), copy=True)
