"""Adapters and interventions behind one protocol, told apart in one file."""

import pytest
import torch

from roadkit import kinds
from roadkit.adapter import Adapter
from roadkit.errors import AdapterError, ExpressionError
from roadkit.intervene import Intervention, Positions, Subspace


@pytest.fixture
def intervention():
    adapter = Adapter.from_parameters(
        {"layers.0": (torch.full((4,), 0.3), torch.ones(4))}, variant="road_1", group_size=2
    )
    halves = {name: Subspace.of(8, pairs, group_size=2) for name, pairs in (("low", [0, 1]), ("high", [2, 3]))}
    return Intervention(adapter, Positions.parse("last:1"), halves)


def test_a_folder_is_read_as_what_it_holds(tmp_path, intervention):
    intervention.rotation.save(tmp_path / "adapter")
    intervention.save(tmp_path / "intervention")
    adapter, found = kinds.load(tmp_path / "adapter"), kinds.load(tmp_path / "intervention")
    assert (adapter.positions, dict(adapter.parts)) == (None, {}) and adapter.rotation is adapter
    assert found.positions == intervention.positions and found.content_hash == intervention.content_hash
    assert kinds.files_in(tmp_path) is None
    with pytest.raises(AdapterError):
        kinds.load(tmp_path)


def test_a_folder_of_both_is_an_intervention_for_everyone(tmp_path, intervention):
    intervention.rotation.save(tmp_path)
    for file in ("intervention.json", "intervention.safetensors"):
        intervention.save(tmp_path / "own")
        (tmp_path / "own" / file).rename(tmp_path / file)
    assert kinds.load(tmp_path).positions is not None


def test_parts_are_looked_up_by_name_and_restricted_when_asked_for(intervention, monkeypatch):
    made = []
    select = Intervention.select
    monkeypatch.setattr(Intervention, "select", lambda self, *names: made.append(names) or select(self, *names))
    assert (
        list(intervention.parts) == ["low", "high"] and "low" in intervention.parts and "no" not in intervention.parts
    )
    assert not made
    assert intervention.parts["low"].content_hash == select(intervention, "low").content_hash
    with pytest.raises(KeyError):
        intervention.parts["no"]


def test_interventions_of_one_expression_act_at_the_same_positions(intervention):
    assert kinds.common_positions([intervention.rotation]) is None
    assert kinds.common_positions([intervention, intervention.rotation]) == intervention.positions
    with pytest.raises(ExpressionError, match="intervenes at last:1 and at all"):
        kinds.common_positions([intervention, intervention.at("all")])
