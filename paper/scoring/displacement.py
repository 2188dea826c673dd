"""How far fine-tuning moves a representation, in length and in direction (RoAd §3.1, first study).

    states0, states = cls_states(base, batches), cls_states(tuned, batches)      # [blocks, samples, d]
    displacement(states, states0)["magnitude"]                                    # ΔM [blocks, samples]

ΔM = | ‖x‖ − ‖x0‖ | / ‖x0‖ and ΔD = cos(x, x0), with x after fine-tuning and x0 before it. ΔD = 1 is no turn at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def magnitude_change(x: Tensor, x0: Tensor) -> Tensor:
    """ΔM, ≥ 0. [..., d], [..., d] → [...]. Raises `ValueError` if an x0 is zero: nothing is relative to it."""
    before = x0.norm(dim=-1)
    if bool((before == 0).any()):
        raise ValueError("magnitude_change: a representation before fine-tuning is zero")
    return (x.norm(dim=-1) - before).abs() / before


def direction_change(x: Tensor, x0: Tensor) -> Tensor:
    """ΔD, the cosine of the angle between x and x0: 1 is no turn, 0 a right angle. [..., d], [..., d] → [...]."""
    return nn.functional.cosine_similarity(x, x0, dim=-1)


def displacement(x: Tensor, x0: Tensor) -> dict[str, Tensor]:
    """{"magnitude": ΔM, "direction": ΔD}, each [blocks, samples], of x and x0 [blocks, samples, d].

    Raises `ValueError` if their shapes differ.
    """
    if x.shape != x0.shape:
        raise ValueError(f"displacement: {tuple(x.shape)} after, {tuple(x0.shape)} before; give the same rows to both")
    return {"magnitude": magnitude_change(x, x0), "direction": direction_change(x, x0)}


@torch.no_grad()
def cls_states(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """The first token ([CLS]) after every block; the embeddings are left out. → [blocks, samples, d] float32, on the CPU."""
    device = next(model.parameters()).device
    parts = []
    for batch in batches:
        inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
        hidden = model(**inputs, output_hidden_states=True).hidden_states[1:]
        parts.append(torch.stack([state[:, 0] for state in hidden]).float().cpu())
    return torch.cat(parts, dim=1)


def distribution(values: Tensor) -> list[dict[str, Any]]:
    """For each block a dictionary of the mean and of `QUANTILES`, named q05 to q95. values [blocks, samples]"""
    points = torch.tensor(QUANTILES)
    return [
        {"mean": float(row.mean())}
        | {f"q{int(100 * q):02d}": float(value) for q, value in zip(QUANTILES, row.quantile(points), strict=True)}
        for row in values
    ]
