"""Small adapters, and what single layers and rows should give under them."""

from __future__ import annotations

import torch
from torch import nn

from roadkit import modules
from roadkit.adapter import Adapter
from roadkit.rotation import rotate
from tests.conftest import TOLERANCE, random_parameters


def close_to(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance, size = TOLERANCE[expected.dtype], float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=tolerance["rtol"], atol=tolerance["rtol"] * size)


def small(seed: int, layers=("q",), width: int = 8, group_size: int = 4, variant: str = "road_1") -> Adapter:
    parameters = {name: random_parameters(variant, width, group_size, seed + i) for i, name in enumerate(layers)}
    return Adapter.from_parameters(parameters, variant=variant, group_size=group_size)


def rotated(model: nn.Module, adapter: Adapter | None, layer: str, x: torch.Tensor) -> torch.Tensor:
    if adapter is None or layer not in adapter.layout.layers:
        return model[layer](x)  # type: ignore[index]
    with modules.attached(model, adapter):
        return model[layer](x)  # type: ignore[index]


def rotated_row(model, adapter, x, row):
    return rotate(nn.functional.linear(x[row], model["q"].weight, model["q"].bias), *adapter.layer("q"))
