"""An adapter merged into a model's weights, and taken out again.

    merge(model, adapter)              # the rotation moves into the weights, O(d·k) a layer
    unmerge(model)

A merged model costs nothing extra and needs no roadkit. Merging needs float weights; `roadkit.modules.attached` also
works on quantised ones.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .adapter import Adapter
from .errors import AlgebraError, ModelError
from .modules import is_conv1d, match, place_heads

_16_BIT = (torch.float16, torch.bfloat16)
_WEIGHTS_AT_ONCE = 1 << 18  # turned at a time: they stay in the processor's cache between the five operations


@dataclass
class _Merged:
    """One merge: its layers, the weights and biases that were kept of them, and what puts the model's heads back."""

    adapter: Adapter
    modules: dict[str, nn.Module]
    originals: dict[str, tuple[Tensor, Tensor | None]]
    undo_heads: list[Callable[[], None]]


_merged: weakref.WeakKeyDictionary[nn.Module, list[_Merged]] = weakref.WeakKeyDictionary()


def merge(model: nn.Module, adapter: Adapter, *, keep_originals: bool | None = None) -> None:
    """Rotate the model's weights in place: R(Wx + b) = (RW)x + Rb. Several merges stack.

    keep_originals  keep the old weights, on their device, so that `unmerge` is exact to the bit. By default those in
                    16 bits are kept, because there undoing by the inverse would round once more. False saves that
                    memory: a 16-bit model that is never unmerged then takes half as much

    Raises `ModelError` for quantised, tied or shared weights and `AdapterError` if the adapter does not fit. The model
    is then untouched.
    """
    modules = match(model, adapter)
    _check_mergeable(model, modules)
    originals: dict[str, tuple[Tensor, Tensor | None]] = {}
    for name, module in modules.items():  # all of them before the first is turned: memory may end here
        weight, bias = _weights(module)
        if keep_originals or (keep_originals is None and weight.dtype in _16_BIT):
            originals[name] = (weight.clone(), None if bias is None else bias.clone())
    for name, module in modules.items():
        _rotate_weights(module, *adapter.layer(name))
    _merged.setdefault(model, []).append(_Merged(adapter, modules, originals, place_heads(model, adapter)))


def unmerge(model: nn.Module, adapter: Adapter | None = None) -> None:
    """Undo the last `merge`. `adapter`, if given, must be the one merged last.

    Kept originals come back bit for bit. Other weights are turned back by the inverse: in float32 they are right to
    rounding (about 1e-7 times the worst block's condition number), in 16 bits they round once more, and a warning says
    so. Raises `ModelError` if nothing is merged, another adapter was merged last, or a block has no inverse.
    """
    stack = _merged.get(model, [])
    if not stack:
        raise ModelError("nothing is merged into this model")
    last = stack[-1]
    if adapter is not None and adapter != last.adapter:
        raise ModelError(f"{adapter} was not merged last; undo {last.adapter} first")
    inverse = None
    if last.modules.keys() != last.originals.keys():
        try:
            inverse = last.adapter.inverse()
        except AlgebraError as error:
            raise ModelError(f"cannot unmerge by the inverse: {error}; merge with keep_originals=True") from None
    for name, module in last.modules.items():
        weight, bias = _weights(module)
        if name in last.originals:
            kept_weight, kept_bias = last.originals[name]
            weight.copy_(kept_weight)
            if bias is not None and kept_bias is not None:
                bias.copy_(kept_bias)
        else:
            assert inverse is not None, name
            if weight.dtype in _16_BIT:
                message = f"unmerging from {weight.dtype} weights rounds them; merge with keep_originals=True"
                warnings.warn(message, stacklevel=2)
            _rotate_weights(module, *inverse.layer(name))
    for undo in reversed(last.undo_heads):
        undo()
    stack.pop()


def rotate_matrix_(weight: Tensor, a: Tensor, b: Tensor, group_size: int) -> None:
    """`W ← R W` in place, for W [d, k] and a, b [d]: pairs of rows are turned, O(d·k), no d×d matrix; float32 inside."""
    groups = weight.unflatten(0, (-1, 2, group_size // 2))  # [groups, 2, g/2, k]
    scale = a.to(weight.device).view(-1, 2, group_size // 2, 1)
    cross = b.to(weight.device).view(-1, 2, group_size // 2, 1)
    for first in range(0, len(groups), step := max(1, _WEIGHTS_AT_ONCE // groups[0].numel())):
        part, a_part, b_part = (x[first : first + step] for x in (groups, scale, cross))
        wide = part if part.dtype == torch.float32 else part.float()
        lo, hi = wide[:, 0], wide[:, 1]
        from_lo = lo * b_part[:, 1]
        lo.mul_(a_part[:, 0]).addcmul_(hi, b_part[:, 0])
        hi.mul_(a_part[:, 1]).add_(from_lo)
        if wide is not part:
            part.copy_(wide)


def _weights(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor), type(weight)
    return weight.data, None if bias is None else bias.data


def _rotate_weights(module: nn.Module, a: Tensor, b: Tensor, group_size: int) -> None:
    weight, bias = _weights(module)
    rotate_matrix_(weight.t() if is_conv1d(module) else weight, a, b, group_size)
    if bias is not None:
        rotate_matrix_(bias.unsqueeze(1), a, b, group_size)


def _check_mergeable(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter.data_ptr() if parameter.device.type != "meta" else id(parameter), []).append(name)
    problems = []
    for name, module in modules.items():
        weight = getattr(module, "weight", None)
        plain = isinstance(weight, Tensor) and type(weight.data) is Tensor and weight.is_floating_point()
        if not isinstance(weight, Tensor) or not plain or weight.itemsize == 1:  # 8-bit floats have scales of their own
            kind = type(module).__name__
            problems.append(f"{name} is quantised ({kind}): attach to it instead, or merge into the float model")
        elif weight.device.type == "meta" or not weight.numel():
            problems.append(f"{name} has no weights in memory (on the meta device, or packed by an engine)")
        elif len(users := owners.get(weight.data_ptr(), [])) > 1:
            others = ", ".join(user for user in users if not user.startswith(name + "."))
            problems.append(f"{name} shares its weights with {others}")
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise ModelError("cannot merge: " + "; ".join(problems[:5]) + more)
