from __future__ import annotations

import pytest
from torch import nn


@pytest.fixture
def model():
    """Three layers of different widths, for tests that need no transformer."""
    layers = {"q": nn.Linear(6, 8), "v": nn.Linear(6, 24), "o": nn.Linear(6, 36)}
    return nn.ModuleDict(layers).requires_grad_(False)  # else the fused kernel stands back
