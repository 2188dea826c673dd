"""What the tests of the verbs share: a runner, and two adapters on disk."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from roadkit.adapter import Adapter


@pytest.fixture
def runner():
    return CliRunner()


@pytest.fixture
def folder(tmp_path):
    """A folder of two adapters, `formal` and `german`."""
    for i, name in enumerate(("formal", "german")):
        torch.manual_seed(i)
        parameters = {"model.layers.0.self_attn.q_proj": (0.2 * torch.randn(32), 1 + 0.1 * torch.randn(32))}
        Adapter.from_parameters(parameters, variant="road_1", group_size=8).save(tmp_path / "adapters" / name)
    return tmp_path / "adapters"
