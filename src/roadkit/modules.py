"""Which layers of a model an adapter rotates, and an adapter attached to them.

    with attached(model, adapter):     # forward passes are rotated; leaving restores the model exactly
        model(**inputs)

Works on `nn.Linear`, transformers' `Conv1D` and quantised linear layers of any Hugging Face model: attaching needs only
the layers' outputs. `roadkit.merging` writes an adapter into the weights instead.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .adapter import Adapter
from .errors import AdapterError, nearest
from .kernels.rows import rotate_rows


def width_of(module: nn.Module) -> int | None:
    """The number of outputs of a layer that can be rotated; None for every other module."""
    if isinstance(width := getattr(module, "out_features", None), int):  # a backbone has a list of them
        return width
    if is_conv1d(module) and isinstance(width := getattr(module, "nf", None), int):
        return width
    return None


def is_conv1d(module: nn.Module) -> bool:
    """Is this transformers' `Conv1D`, GPT-2's linear layer, which keeps its weight as [in, out]?"""
    return type(module).__name__ == "Conv1D"


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every layer that can be rotated, by name. The output head is left out, as in PEFT's 'all-linear'."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
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

    A name may lack or carry the model's `base_model_prefix`: an adapter that was trained on a model without a head fits
    the same model with one, and the reverse.
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
    """All layers of an adapter as modules of this model (see `resolve`), checked with its heads.

    Raises one `AdapterError` that lists every layer or head that is missing or has another shape. Warns if the adapter
    was trained on a model of another configuration.
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
    """An attached adapter. `remove`, or leaving `attached`, restores the model exactly."""

    adapter: Adapter
    _undo: list[Callable[[], None]] = field(default_factory=list)

    def remove(self) -> None:
        while self._undo:
            self._undo.pop()()


_attachments: weakref.WeakKeyDictionary[nn.Module, list[Attachment]] = weakref.WeakKeyDictionary()


def attach(model: nn.Module, adapter: Adapter) -> Attachment:
    """Rotate the outputs of the adapter's layers from now on. Several attachments apply in their order.

    Raises `AdapterError` if the adapter does not fit; the model is then untouched.
    """
    modules = match(model, adapter)
    attachment = Attachment(adapter)
    for name, module in modules.items():
        handle = module.register_forward_hook(_Rotate(*adapter.layer(name)))
        attachment._undo.append(handle.remove)
    attachment._undo += place_heads(model, adapter)
    _attachments.setdefault(model, []).append(attachment)
    return attachment


def detach(model: nn.Module) -> None:
    """Remove every attached adapter, the last first."""
    for attachment in reversed(_attachments.pop(model, [])):
        attachment.remove()


@contextmanager
def attached(model: nn.Module, adapter: Adapter) -> Iterator[nn.Module]:
    """Rotate a model's outputs inside a `with` block: `with attached(model, adapter): model(**inputs)`.

    The model may be quantised, and gradients pass through. Leaving the block restores it exactly.
    Raises `AdapterError` if the adapter does not fit.
    """
    attachment = attach(model, adapter)
    try:
        yield model
    finally:
        attachment.remove()
        if attachment in _attachments.get(model, []):
            _attachments[model].remove(attachment)


class _Rotate:
    """Forward hook: rotate a layer's output, and a bias that the layer returns instead of adding."""

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


def place_heads(model: nn.Module, adapter: Adapter) -> list[Callable[[], None]]:
    """Put the adapter's heads in place of the model's. The returned calls put the model's own objects back."""
    undo: list[Callable[[], None]] = []
    for module_name, tensors in adapter.heads.items():
        for name, tensor in tensors.items():
            path, _, leaf = f"{module_name}.{name}".rpartition(".")
            owner = model.get_submodule(path)
            is_parameter = leaf in owner._parameters
            store: dict = owner._parameters if is_parameter else owner._buffers
            original = store[leaf]
            assert original is not None, f"{path}.{leaf} is None"
            replacement = tensor.to(original.device, original.dtype)
            store[leaf] = nn.Parameter(replacement, requires_grad=False) if is_parameter else replacement
            undo.append(lambda store=store, leaf=leaf, original=original: store.__setitem__(leaf, original))
    return undo
