from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from roadkit.errors import AdapterError, AlgebraError
from roadkit.intervene import Intervention, Positions, Subspace, files
from roadkit.rotation import rotate


def test_selected_subspace_rotates_its_pairs_and_leaves_the_rest(make_intervention):
    tasks = make_intervention(variant="road_2")
    h = torch.randn(5, 64)
    mask = tasks.subspaces["one"].mask
    whole = rotate(h, *tasks.rotation.layer("model.layers.0"))
    part = rotate(h, *tasks.select("one").rotation.layer("model.layers.0"))
    assert torch.equal(part[:, mask], whole[:, mask])
    assert torch.equal(part[:, ~mask], h[:, ~mask])


@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_disjoint_subspaces_commute_and_their_union_is_the_whole(make_intervention, variant):
    tasks = make_intervention(variant=variant)
    one, two = tasks.select("one"), tasks.select("two")
    assert one.then(two).rotation == two.then(one).rotation == tasks.select("one", "two").rotation
    assert torch.equal(one.then(two).rotation.a, tasks.rotation.a)


@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_saved_interventions_come_back(make_intervention, tmp_path, variant):
    tasks = make_intervention("first:2+last:1", ("model.layers.0", "model.layers.1.mlp"), variant=variant)
    for name, value in {"whole": tasks, "part": tasks.select("two")}.items():
        value.save(tmp_path / name)
        loaded = Intervention.load(tmp_path / name)
        assert loaded.positions == value.positions
        assert loaded.subspaces == value.subspaces
        torch.testing.assert_close(loaded.rotation.a, value.rotation.a, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(loaded.rotation.b, value.rotation.b, rtol=1e-6, atol=1e-6)
    assert Intervention.load(tmp_path / "whole").content_hash == tasks.content_hash


def test_broken_files_are_named(make_intervention, tmp_path):
    tasks = make_intervention()
    tasks.save(tmp_path / "tasks")
    config = json.loads((tmp_path / "tasks" / "intervention.json").read_text())

    def broken(**changes):
        (tmp_path / "tasks" / "intervention.json").write_text(json.dumps(config | changes))
        return pytest.raises(AdapterError)

    with broken(subspaces={"one": [[0, 99]]}) as error:
        Intervention.load(tmp_path / "tasks")
    assert "no range [first, last) within the 32 pairs" in str(error.value)
    with broken(positions="nowhere") as error:
        Intervention.load(tmp_path / "tasks")
    assert "'nowhere' is not understood" in str(error.value)
    with broken(sites=["model.layers.7"]) as error:
        Intervention.load(tmp_path / "tasks")
    assert "tensor" in str(error.value)
    with broken(subspaces={"one": [[0, 32]] * 9}) as error:
        Intervention.load(tmp_path / "tasks")
    assert "its ranges overlap" in str(error.value)
    with broken(subspaces={f"s{i}": [[0, 32]] for i in range(300)}) as error:
        Intervention.load(tmp_path / "tasks")
    assert "subspaces" in str(error.value)
    with broken(colour="red") as error:
        Intervention.load(tmp_path / "tasks")
    assert "colour" in str(error.value)
    with broken() as error:
        site = "model.layers.0"
        bad = {f"{site}.road_theta": torch.full((32,), torch.nan), f"{site}.road_alpha": torch.ones(32)}
        save_file(bad, tmp_path / "tasks" / "intervention.safetensors")
        Intervention.load(tmp_path / "tasks")
    assert "road_theta is not finite" in str(error.value)
    for text, message in (
        ("", r"tasks: intervention.json: not JSON: EOF while parsing"),
        ("{not json", r"tasks: intervention.json: not JSON: key must be a string"),
        ("[]", r"tasks: intervention.json: input should be an object"),
        ('{"formt": 1}', r"tasks: format is missing"),
    ):
        with pytest.raises(AdapterError, match=message):
            files.parse(text.encode(), b"", origin="tasks")
    with pytest.raises(AdapterError, match="intervention.json is missing"):
        Intervention.load(tmp_path)


def test_what_does_not_fit_is_refused(make_intervention):
    tasks = make_intervention()
    with pytest.raises(AdapterError, match="no subspace 'on'; did you mean 'one'"):
        tasks.select("on")
    with pytest.raises(AdapterError, match="at last:1 and at all do not compose"):
        tasks.then(tasks.at("all"))
    with pytest.raises(AlgebraError, match="subspace 'wide' has width 32"):
        Intervention(tasks.rotation, Positions(last=1), {"wide": Subspace.whole(32, group_size=16)})
    with pytest.raises(AdapterError, match="wants hidden states"):
        tasks.interchange({"model.layers.0": torch.zeros(3)})
    with pytest.raises(AdapterError, match="is not saved"):
        tasks.interchange({"model.layers.0": torch.zeros(1, 64)}).save("nowhere")


def test_strength_and_inverse_are_the_rotations(make_intervention):
    tasks = make_intervention()
    undone = tasks.then(tasks**-1).rotation
    torch.testing.assert_close(undone.a, torch.ones_like(undone.a), rtol=0, atol=1e-5)
    assert (tasks**0.5).positions == tasks.positions
