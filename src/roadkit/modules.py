"""Which layers of a model an adapter rotates; attach and detach, merge and unmerge.

    with attached(model, adapter):     # forward passes are rotated; leaving restores the model exactly
        model(**inputs)
    merge(model, adapter)              # the rotation moves into the weights, O(d·k) a layer
    unmerge(model)

Works on `nn.Linear`, transformers' `Conv1D` and quantised linears of any Hugging Face model. Attaching needs a layer's
output only; merging needs its float weights.
"""

from __future__ import annotations

import logging
import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .adapter import Adapter
from .errors import AdapterError, AlgebraError, ModelError, nearest
from .kernels.rows import rotate_rows

log = logging.getLogger("roadkit.modules")


def width_of(module: nn.Module) -> int | None:
    """Output width of a layer that can be rotated, else None."""
    if isinstance(width := getattr(module, "out_features", None), int):  # a backbone has a list of them
        return width
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # transformers' GPT-2 layer, weight [in, out]
        return int(module.nf)  # type: ignore[arg-type]
    return None


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every layer that can be rotated, by name, the output head left out (PEFT's 'all-linear')."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    attention = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    hidden = {id(child) for module in attention for child in module.modules()}  # read by weight, never called
    return {
        name: module
        for name, module in model.named_modules()
        if width_of(module) is not None
        and module is not head
        and id(module) not in hidden
        and not list(module.children())
    }


def resolve(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Adapter layer names → modules, for the names that the model has.

    A name may lack or carry the model's `base_model_prefix` (an adapter trained on a headless model, and the reverse).
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    prefix = getattr(model, "base_model_prefix", "") + "."
    found = {}
    for name in names:
        candidates = (name, name.removeprefix(prefix), prefix + name)
        module = next((modules[candidate] for candidate in candidates if candidate in modules), None)
        if module is not None:
            found[name] = module
    return found


def match(model: nn.Module, adapter: Adapter) -> dict[str, nn.Module]:
    """`resolve` for an adapter's layers, everything checked.

    Raises one `AdapterError` that lists every layer that is missing or has another width.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found, problems = resolve(model, adapter.layout.layers), []
    for name, (width, _) in adapter.layout.layers.items():
        module = found.get(name)
        if module is None:
            problems.append(f"the model has no module {name!r}{nearest(name, modules) if not problems else ''}")
        elif width_of(module) is None:
            problems.append(f"{name} is a {type(module).__name__}, only linear layers can be rotated")
        elif width_of(module) != width:
            trained = f"; was it trained on {adapter.base.name!r}?" if adapter.base.name else ""
            problems.append(f"{name}: adapter is {width} wide, layer {width_of(module)}{trained}")
    owners: dict[int, str] = {}
    for name, module in found.items():
        if (first := owners.setdefault(id(module), name)) != name:
            problems.append(f"{first} and {name} are one module, which can be rotated once only")
    for name, tensors in adapter.heads.items():
        if name not in modules:
            problems.append(f"the model has no module {name!r} for the saved head")
        else:
            known = {**dict(modules[name].named_parameters()), **dict(modules[name].named_buffers())}
            problems += [
                f"{name} has no parameter {leaf!r} for the saved head" for leaf in tensors if leaf not in known
            ]
            if any(leaf in known and known[leaf].device.type == "meta" for leaf in tensors):
                problems.append(f"{name} is offloaded, and the saved head cannot take its place: keep it on a device")
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise AdapterError("the adapter does not fit the model: " + "; ".join(problems[:5]) + more)
    _warn_of_other_base(model, adapter)
    return found


def _warn_of_other_base(model: nn.Module, adapter: Adapter) -> None:
    config = getattr(model, "config", None)
    if config is None or not adapter.base.fingerprint:
        return
    from .models import config_fingerprint

    if config_fingerprint(config) != adapter.base.fingerprint:
        message = f"the adapter was trained on {adapter.base.name!r}, whose configuration differs from this model's"
        warnings.warn(message, stacklevel=3)


# ---- attach, detach ---------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Attachment:
    """An attached adapter; `remove` (or leaving `attached`) restores the model exactly."""

    adapter: Adapter
    _undo: list = field(default_factory=list)

    def remove(self) -> None:
        while self._undo:
            self._undo.pop()()


_attachments: weakref.WeakKeyDictionary[nn.Module, list[Attachment]] = weakref.WeakKeyDictionary()


def attach(model: nn.Module, adapter: Adapter) -> Attachment:
    """Rotate the outputs of the adapter's layers from now on. Several attachments apply in order.

    Raises `AdapterError` where the adapter does not fit; the model is then untouched.
    """
    modules = match(model, adapter)
    attachment = Attachment(adapter)
    for name, module in modules.items():
        handle = module.register_forward_hook(_Rotate(*adapter.layer(name)))
        attachment._undo.append(handle.remove)
    attachment._undo += _swap_heads(model, adapter)
    _attachments.setdefault(model, []).append(attachment)
    return attachment


def detach(model: nn.Module) -> None:
    """Remove every attached adapter, the last first."""
    for attachment in reversed(_attachments.pop(model, [])):
        attachment.remove()


@contextmanager
def attached(model: nn.Module, adapter: Adapter) -> Iterator[nn.Module]:
    """`attach` for the length of a block."""
    attachment = attach(model, adapter)
    try:
        yield model
    finally:
        attachment.remove()
        if attachment in _attachments.get(model, []):
            _attachments[model].remove(attachment)


class _Rotate:
    """Forward hook: rotate a layer's output, and a bias that it returns instead of adding."""

    def __init__(self, a: Tensor, b: Tensor, group_size: int):
        self.a, self.b, self.group_size = a.unsqueeze(0), b.unsqueeze(0), group_size

    def __call__(self, module: nn.Module, args: tuple, output):
        if isinstance(output, tuple):
            return tuple(self.rotate(item) if isinstance(item, Tensor) else item for item in output)
        return self.rotate(output)

    def rotate(self, h: Tensor) -> Tensor:
        if self.a.device != h.device:
            self.a, self.b = self.a.to(h.device), self.b.to(h.device)
        rows = torch.zeros((1,) * (h.dim() - 1), dtype=torch.int64, device=h.device).expand(h.shape[:-1])
        return rotate_rows(h, rows, self.a, self.b, self.group_size)


def _swap_heads(model: nn.Module, adapter: Adapter) -> list:
    """Put the adapter's heads in place; the returned calls put the model's own back, the same objects."""
    undo: list = []
    for module_name, tensors in adapter.heads.items():
        for name, tensor in tensors.items():
            path, _, leaf = f"{module_name}.{name}".rpartition(".")
            owner = model.get_submodule(path)
            original = owner._parameters[leaf] if leaf in owner._parameters else owner._buffers[leaf]
            assert original is not None, f"{path}.{leaf} is None"
            replacement = tensor.to(original.device, original.dtype)
            store: dict = owner._parameters if leaf in owner._parameters else owner._buffers
            store[leaf] = nn.Parameter(replacement, requires_grad=False) if store is owner._parameters else replacement
            undo.append(lambda store=store, leaf=leaf, original=original: store.__setitem__(leaf, original))
    return undo


# ---- merge, unmerge ---------------------------------------------------------------------------------------------


@dataclass
class _Merged:
    adapter: Adapter
    modules: dict[str, nn.Module]
    originals: dict[str, tuple[Tensor, Tensor | None]]
    undo_heads: list


_merged: weakref.WeakKeyDictionary[nn.Module, list[_Merged]] = weakref.WeakKeyDictionary()


def merge(model: nn.Module, adapter: Adapter, *, keep_originals: bool | None = None) -> None:
    """Rotate the weights in place: R(Wx + b) = (RW)x + Rb. Merges stack.

    keep_originals  keep the weights for a bit-exact `unmerge`; by default only where they are 16-bit, because there
                    undoing by the inverse would round once more. They stay where the weights are: a model of 16
                    bits that is not to be unmerged takes half the memory with keep_originals=False

    Raises `ModelError` for quantised, tied or shared weights, `AdapterError` where the adapter does not fit; the
    model is then untouched.
    """
    modules = match(model, adapter)
    _check_mergeable(model, modules)
    originals: dict[str, tuple[Tensor, Tensor | None]] = {}
    for name, module in modules.items():  # all of them before the first is turned: memory may end here
        weight, bias = _weights(module)
        if keep_originals or (keep_originals is None and weight.dtype in (torch.float16, torch.bfloat16)):
            originals[name] = (weight.clone(), None if bias is None else bias.clone())
    for name, module in modules.items():
        _rotate_weights(module, *adapter.layer(name))
    _merged.setdefault(model, []).append(_Merged(adapter, modules, originals, _swap_heads(model, adapter)))


def unmerge(model: nn.Module, adapter: Adapter | None = None) -> None:
    """Undo the last `merge`. `adapter`, if given, must be the one merged last.

    Kept originals come back bit for bit; otherwise the inverse rotation does, which in float32 is right to rounding
    (about 1e-7 × the worst block's condition number) and in 16-bit storage rounds once more (a warning says so).
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
            weight.copy_(last.originals[name][0])
            if bias is not None:
                bias.copy_(last.originals[name][1])  # type: ignore[arg-type]
        else:
            assert inverse is not None, name
            if weight.dtype in (torch.float16, torch.bfloat16):
                message = f"unmerging from {weight.dtype} weights rounds them; merge with keep_originals=True"
                warnings.warn(message, stacklevel=2)
            _rotate_weights(module, *inverse.layer(name))
    for undo in reversed(last.undo_heads):
        undo()
    stack.pop()


def _weights(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    bias = getattr(module, "bias", None)
    return module.weight.data, bias.data if bias is not None else None  # type: ignore[union-attr, return-value]


def _rotate_weights(module: nn.Module, a: Tensor, b: Tensor, group_size: int) -> None:
    weight, bias = _weights(module)
    rotate_matrix_(weight.t() if type(module).__name__ == "Conv1D" else weight, a, b, group_size)
    if bias is not None:
        rotate_matrix_(bias.unsqueeze(1), a, b, group_size)


_MERGE_BLOCK = 1 << 18  # weights turned at a time: they stay in the processor's cache between the five operations


def rotate_matrix_(weight: Tensor, a: Tensor, b: Tensor, group_size: int) -> None:
    """W ← R W in place, pairs of rows of W [d, k]: O(d·k), no d×d matrix; float32 inside."""
    groups = weight.unflatten(0, (-1, 2, group_size // 2))  # [groups, 2, g/2, k]
    scale = a.to(weight.device).view(-1, 2, group_size // 2, 1)
    cross = b.to(weight.device).view(-1, 2, group_size // 2, 1)
    for first in range(0, len(groups), step := max(1, _MERGE_BLOCK // groups[0].numel())):
        part, a_part, b_part = (x[first : first + step] for x in (groups, scale, cross))
        wide = part if part.dtype == torch.float32 else part.float()
        lo, hi = wide[:, 0], wide[:, 1]
        from_lo = lo * b_part[:, 1]
        lo.mul_(a_part[:, 0]).addcmul_(hi, b_part[:, 0])
        hi.mul_(a_part[:, 1]).add_(from_lo)
        if wide is not part:
            part.copy_(wide)


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
