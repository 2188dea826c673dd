"""The geometry of adapters as rows of numbers; `figures` draws them.

    angles(adapter)                      # for each layer: quantiles of angles and log scales
    heatmap(adapter)                     # for each layer: mean |θ| and mean |ln α|
    sweep(model, examples, adapter)      # a task's loss against the strength w
    trajectory({10: a, 20: b})           # how far the angles have come, checkpoint by checkpoint

Angles are in radians, scales as natural logarithms. They are θ and α of road_1; for other blocks those of the nearest
rotation and √|det| (see `roadkit.rotation.turn`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import rotation
from ..adapter import Adapter
from ..algebra import distances
from ..describe import places
from ..errors import AlgebraError, RecipeError
from ..modules import attached

Rows = list[dict[str, Any]]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
STRENGTHS = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


def angles(adapter: Adapter) -> Rows:
    """A row for each layer and quantity ('angle', 'log scale'): 5, 25, 50, 75 and 95 % quantiles over the layer's pairs."""
    rows = []
    for name, block, kind in _layers(adapter):
        for quantity, values in zip(("angle", "log scale"), rotation.turn(*adapter.layer(name)), strict=True):
            points = torch.quantile(values, torch.tensor(QUANTILES)).tolist()
            quantiles = {f"q{round(100 * q):02}": value for q, value in zip(QUANTILES, points, strict=True)}
            rows.append({"layer": block, "module": kind, "quantity": quantity, **quantiles, "pairs": len(values)})
    return rows


def heatmap(adapter: Adapter) -> Rows:
    """A row for each layer: mean |angle| and mean |log scale| over the layer's pairs."""
    rows = []
    for name, block, kind in _layers(adapter):
        angle, scale = rotation.turn(*adapter.layer(name))
        numbers = {"mean_angle": float(angle.abs().mean()), "mean_log_scale": float(scale.abs().mean())}
        rows.append({"layer": block, "module": kind, **numbers})
    return rows


def _layers(adapter: Adapter) -> Iterator[tuple[str, int, str]]:
    """Name, number of the block (−1 if it has none) and kind of every layer; see `roadkit.describe.places`."""
    for name, (block, kind) in places(adapter.layout.layers).items():
        yield name, -1 if block is None else block, kind


def sweep(model: Any, examples: Sequence[Any], adapter: Adapter, strengths: Sequence[float] = STRENGTHS) -> Rows:
    """A row for each strength w: the mean loss of the examples' answers under `adapter ** w`, in nats a token.

    examples  `TaskRow`s of `roadkit.intervene.training`

    The row of a strength that the adapter has no power of holds None.
    """
    from ..intervene.training import answer_losses

    if not examples:
        raise RecipeError("a sweep needs at least one example")
    rows: Rows = []
    for strength in strengths:
        try:
            powered = adapter**strength
        except AlgebraError:
            rows.append({"strength": strength, "loss": None, "stderr": None})
            continue
        with attached(model, powered), torch.no_grad():
            parts = [answer_losses(model, examples[at : at + 8]) for at in range(0, len(examples), 8)]
        losses = torch.cat(parts)
        spread = float(losses.std() / len(losses) ** 0.5) if len(losses) > 1 else None
        rows.append({"strength": strength, "loss": float(losses.mean()), "stderr": spread})
    return rows


def trajectory(checkpoints: Mapping[int, Adapter]) -> Rows:
    """A row for each step and kind of module: mean |angle| and mean |log scale|.

    Each row also has the distances of the step's whole adapter, in radians a pair: from the base model, from the
    checkpoint before, and to the last one.
    """
    steps = sorted(checkpoints)
    if len(steps) < 2:
        raise RecipeError(f"a trajectory needs at least two checkpoints, got {len(steps)}")
    ordered = [checkpoints[step] for step in steps]
    matrix = distances([ordered[0] ** 0, *ordered])
    rows = []
    for i, (step, adapter) in enumerate(zip(steps, ordered, strict=True), 1):
        kinds: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for name, _, kind in _layers(adapter):
            kinds.setdefault(kind, []).append(rotation.turn(*adapter.layer(name)))
        far = {
            "from_base": float(matrix[0, i]),
            "from_previous": float(matrix[i - 1, i]),
            "to_last": float(matrix[i, -1]),
        }
        for kind, turns in kinds.items():
            angle, scale = (torch.cat([turn[part] for turn in turns]).abs().mean() for part in (0, 1))
            rows.append(
                {"step": step, "module": kind, "mean_angle": float(angle), "mean_log_scale": float(scale), **far}
            )
    return rows


def load_checkpoints(folder: Path) -> dict[int, Adapter]:
    """The complete checkpoints of a run's folder (`checkpoint-10`, …) as adapters, by step. Raises `RecipeError`."""
    found = {}
    for path in sorted(folder.glob("checkpoint-*")):
        number = path.name.rpartition("-")[2]
        if number.isdigit() and (path / "adapter_config.json").is_file():
            found[int(number)] = Adapter.load(path)
    if not found:
        raise RecipeError(f"{folder} holds no checkpoint-N folders; train with save_steps and keep_checkpoints=true")
    return found
