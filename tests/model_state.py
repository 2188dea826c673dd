"""What a model gives and holds, to be compared before and after an adapter was attached or merged.

before = state(model)
with attached(model, adapter): outputs(model)
assert_same_state(model, before)
"""

from __future__ import annotations

import torch
from torch import nn

from roadkit.adapter import Adapter
from tests.conftest import TOLERANCE, random_parameters

IDS = torch.tensor([[5, 9, 200, 31, 7, 7, 64], [1, 2, 3, 4, 5, 6, 7]])


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS)[0]


def state(model: nn.Module) -> dict:
    """Everything that attaching might leave behind: parameters (the objects and their values), hooks, attributes."""
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict(keep_vars=True).items()}
    objects = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    hooks = {
        name: (list(module._forward_hooks), list(module._forward_pre_hooks), list(module._forward_hooks_with_kwargs))
        for name, module in model.named_modules()
    }
    return {
        "tensors": tensors,
        "objects": objects,
        "hooks": hooks,
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
    }


def assert_same_state(model: nn.Module, before: dict) -> None:
    after = state(model)
    tensors = before["tensors"]
    assert tensors.keys() == after["tensors"].keys()
    assert all(torch.equal(tensor, after["tensors"][name]) for name, tensor in tensors.items())
    for part in ("objects", "hooks", "attributes"):
        assert before[part] == after[part]


def close_to(actual: torch.Tensor, expected: torch.Tensor, scale: float = 1.0) -> None:
    """Within the table, of the size of the whole tensor: sums over a layer lose what single entries keep."""
    tolerance = TOLERANCE[expected.dtype]
    size = float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=scale * tolerance["rtol"], atol=scale * tolerance["rtol"] * size)


def head(labels: int = 3, seed: int = 7) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "classifier": {
            "weight": torch.randn(labels, 64, generator=generator),
            "bias": torch.randn(labels, generator=generator),
        }
    }


def one_layer(name: str, width: int, **options) -> Adapter:
    return Adapter.from_parameters(
        {name: random_parameters("road_1", width, 2)}, variant="road_1", group_size=2, **options
    )
