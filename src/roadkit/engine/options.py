"""What an engine can be told when it is built: one frozen model for the command line, the server and both engines.

    options = EngineOptions(max_batch=32, weights="int8")
    engine = Engine.from_pretrained("smollm2", **options.given)

None always means that the engine chooses.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from ..validation import Checked

Weights = Literal["float32", "bfloat16", "int8"]
Function = TypeVar("Function", bound=Callable)


class EngineOptions(Checked):
    """Options of every engine. Raises `RequestError` for an unknown name or a value out of range.

    max_batch      requests that run at once; more wait
    max_waiting    requests that may wait in the embedded engine; beyond, `submit` raises `QueueFull`
    slots          different adapters or compositions resident at once; by default enough for every running request
    max_context    longest prompt and answer in tokens; by default the model's own limit, or what the cache holds
    cache_gib      memory for keys and values, in GiB; by default 1 on the embedded engine, and vLLM's own choice there
    weights        what the weights are stored as; by default the model's type. Only the embedded engine on the CPU stores
                   int8, and only it changes the type of a model that is loaded
    """

    max_batch: int = Field(default=8, ge=1)
    max_waiting: int = Field(default=4096, ge=1)
    slots: int | None = Field(default=None, ge=1)
    max_context: int | None = Field(default=None, ge=1)
    cache_gib: float | None = Field(default=None, gt=0)
    weights: Weights | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults, by name."""
        defaults = _defaults(type(self))
        return {name: value for name, value in self if value != defaults[name]}


class VllmOptions(EngineOptions):
    """Options of vLLM, beside those of every engine.

    group_sizes                    pairings that adapters may have
    tensor_parallel_size           over how many GPUs each layer is cut
    pipeline_parallel_size         over how many groups of them the layers are dealt
    distributed_executor_backend   'mp' or 'ray'
    copies                         folder that every machine sees, in which copies of the registered adapters are made and
                                   deleted again; by default this machine's temporary folder
    arguments                      further fields of vLLM's `AsyncEngineArgs`, passed as they are
    """

    group_sizes: tuple[int, ...] = (64,)
    tensor_parallel_size: int = Field(default=1, ge=1)
    pipeline_parallel_size: int = Field(default=1, ge=1)
    distributed_executor_backend: str | None = None
    copies: Path | None = None
    arguments: Mapping[str, Any] = Field(default_factory=dict)


def takes(options: type[EngineOptions]) -> Callable[[Function], Function]:
    """Show the fields of `options` in the signature of a function that takes them as its last, `**`, parameter."""

    def show(function: Function) -> Function:
        plain = inspect.signature(function)
        *first, _ = plain.parameters.values()
        annotations = {name: field.annotation for name, field in options.model_fields.items()}
        fields = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=annotations[name])
            for name, value in _defaults(options).items()
        ]
        function.__signature__ = plain.replace(parameters=[*first, *fields])  # type: ignore[attr-defined]
        return function

    return show


def _defaults(options: type[EngineOptions]) -> dict[str, Any]:
    return {name: field.get_default(call_default_factory=True) for name, field in options.model_fields.items()}
