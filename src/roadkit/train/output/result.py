"""What a run tells: its numbers, for people and as JSON.

result = run(recipe)
result.metrics["loss"], result.figures()["adapter"]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.labels import Classes


@dataclass(frozen=True)
class TrainResult:
    """What a run made. `adapter` is the directory written (with LoRA: road/ and lora/ in it).

    metrics       loss (mean of the last steps), train_loss (mean of the run), and with held-out rows eval_loss, …
    steps         of the optimiser
    seconds       of this call, loading included
    examples      rows trained on
    tokens        seen by this call, padding not counted
    trainable     parameters
    truncated, dropped    rows that were cut, and rows left out (see `Encoded`)
    resumed_from  the step of the checkpoint that this call continued from
    classes       of a classification, by name or number
    """

    adapter: Path
    metrics: Mapping[str, float]
    steps: int
    seconds: float
    examples: int = 0
    tokens: int = 0
    trainable: int = 0
    truncated: int = 0
    dropped: int = 0
    resumed_from: int | None = None
    classes: Classes = None

    def figures(self) -> dict[str, Any]:
        """The result as JSON values."""
        return vars(self) | {"adapter": str(self.adapter), "metrics": dict(self.metrics)}


@dataclass(frozen=True)
class ManyResult:
    """What a run with many adapters made: a `TrainResult` for each name, and for the missing ones the reason.

    steps      of the adapter that took the most
    seconds    of this call
    tokens     of all adapters, padding not counted
    """

    adapters: Mapping[str, TrainResult]
    failed: Mapping[str, str]
    steps: int
    seconds: float
    tokens: int

    def figures(self) -> dict[str, Any]:
        """The result as JSON values."""
        return vars(self) | {"adapters": {name: result.figures() for name, result in self.adapters.items()}}
