"""`HeadBank`: rows of a mixed batch that each use their own head (PEFT's `modules_to_save`).

    heads.prepare(adapter.heads)
    with heads.active([adapter.heads, {}]): model(**batch_of_two)      # {}: the model's own head

While rows with heads are active, a hook on each head module runs it once for every distinct head among the rows. Heads
of different sizes give outputs that cannot share a tensor: the model's output then holds a list, one entry a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...errors import ModelError

Heads = Mapping[str, Mapping[str, Tensor]]


class HeadBank:
    """Places one hook on every head module it is told of, and one on the model that splits uneven outputs."""

    def __init__(self, model: nn.Module):
        self.model = model
        self._hooks: dict[str, list] = {}
        self._rows: Sequence[Heads] = ()
        self._widths: list[int] | None = None  # of each row's output, if they differ

    def prepare(self, heads: Heads) -> None:
        """Hook the modules that `heads` replaces."""
        for name in heads:
            if name not in self._hooks:
                module = self.model.get_submodule(name)
                self._hooks[name] = [module.register_forward_hook(self._hook_of(name), with_kwargs=True)]
        if heads and "" not in self._hooks:
            self._hooks[""] = [self.model.register_forward_hook(self._split)]

    @contextmanager
    def active(self, rows: Sequence[Heads]) -> Iterator[None]:
        """Use `rows[i]` for sample i inside the block; {} keeps the model's own head."""
        previous = self._rows
        self._rows = rows if any(rows) else ()
        try:
            yield
        finally:
            self._rows, self._widths = previous, None

    def close(self) -> None:
        """Remove all hooks."""
        for handles in self._hooks.values():
            for handle in handles:
                handle.remove()
        self._hooks.clear()

    def _hook_of(self, name: str):
        def choose(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
            return self._by_row(name, module, args, kwargs, output) if self._rows else output

        return choose

    def _by_row(self, name: str, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        """The module's output with each row computed by that row's own weights."""
        if len(output) != len(self._rows):
            raise ModelError(f"{name}: {len(output)} samples, but {len(self._rows)} rows")
        groups: dict[int, list[int]] = {}
        for i, heads in enumerate(self._rows):
            groups.setdefault(id(heads.get(name)), []).append(i)
        rows: list[Tensor] = list(output.unbind(0))
        for indices in groups.values():
            own = self._rows[indices[0]].get(name)
            if own is None:
                continue
            index = torch.tensor(indices, device=output.device)
            part = [_take(value, index, len(self._rows)) for value in args]
            named = {key: _take(value, index, len(self._rows)) for key, value in kwargs.items()}
            weights = {key: tensor.to(output.device, output.dtype) for key, tensor in own.items()}
            result = _without_hooks(module, weights, tuple(part), named)
            for i, row in zip(indices, result.unbind(0), strict=True):
                rows[i] = row
        widths = [row.shape[-1] for row in rows]
        if len(set(widths)) > 1:  # pad to go through the rest of the model; `_split` cuts the padding off
            self._widths = widths
            rows = [nn.functional.pad(row, (0, max(widths) - row.shape[-1])) for row in rows]
        return torch.stack(rows)

    def _split(self, model: nn.Module, args: tuple, output):
        if self._widths is None:
            return output
        widths, self._widths = self._widths, None
        if getattr(output, "logits", None) is None:
            raise ModelError(f"heads of different sizes need an output with `logits`, got a {type(output).__name__}")
        output.logits = [row[..., :width] for row, width in zip(output.logits.unbind(0), widths, strict=True)]
        return output


def _without_hooks(module: nn.Module, weights: dict[str, Tensor], args: tuple, kwargs: dict) -> Tensor:
    """The module with other weights, its own forward hooks (ours among them) left out."""
    hooks, module._forward_hooks = module._forward_hooks, type(module._forward_hooks)()
    try:
        return functional_call(module, weights, args, kwargs)
    finally:
        module._forward_hooks = hooks


def _take(value, index: Tensor, batch: int):
    """The samples `index` of an argument that has the batch as its first dimension; others as they are."""
    return value[index] if isinstance(value, Tensor) and value.dim() and value.shape[0] == batch else value
