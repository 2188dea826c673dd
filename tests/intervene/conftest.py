from __future__ import annotations

import pytest

from roadkit.adapter import Adapter
from roadkit.intervene import Intervention, Positions, Subspace
from tests.conftest import random_parameters


@pytest.fixture(scope="session")
def make_intervention():
    """`make_intervention(positions, sites)`: a strong rotation of tiny models' hidden states, in halves `one`, `two`."""

    def make(positions="last:1", sites=("model.layers.0",), *, seed=1, variant="road_1", group_size=16) -> Intervention:
        parameters = {site: random_parameters(variant, 64, group_size, seed=seed + i) for i, site in enumerate(sites)}
        one, two = Subspace.split(64, 2, group_size=group_size)
        rotation = Adapter.from_parameters(parameters, variant=variant, group_size=group_size)
        return Intervention(rotation, Positions.parse(positions), {"one": one, "two": two})

    return make
