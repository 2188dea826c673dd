"""A model lent to a trainer and given back untouched.

with borrowed(model):
    ...                  # train it, wrap its layers, register hooks
# here the model is as it was: layers, hooks, flags, configuration
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

Snapshot = dict[str, tuple[Any, Any]]  # attribute → its value, and a copy of what a container holds


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Afterwards the model is as it was: its modules, hooks, methods, training and gradient flags, and configuration.

    Trainers patch `forward`, set tokens in the configuration, register hooks and freeze; PEFT replaces layers. None of
    them writes the base weights, which are not copied.
    """
    modules = [(module, _snapshot(vars(module))) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    found = [getattr(model, name) for name in ("config", "generation_config") if getattr(model, name, None)]
    found += [part for config in found for part in vars(config).values() if isinstance(part, PreTrainedConfig)]
    configs = [(config, _snapshot(vars(config))) for config in found]
    try:
        yield
    finally:
        for owner, snapshot in modules + configs:
            _restore(vars(owner), snapshot)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _snapshot(attributes: dict[str, Any]) -> Snapshot:
    """Every attribute, and of containers (hooks, children, parameters) what is in them."""
    return {
        key: (value, copy.copy(value) if isinstance(value, dict | set | list) else None)
        for key, value in attributes.items()
    }


def _restore(attributes: dict[str, Any], snapshot: Snapshot) -> None:
    """The same objects with the same contents: handles of hooks that stood before still remove them afterwards."""
    attributes.clear()
    for key, (value, contents) in snapshot.items():
        if isinstance(value, list):
            value[:] = contents
        elif contents is not None:
            value.clear()
            value.update(contents)
        attributes[key] = value
