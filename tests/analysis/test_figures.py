"""Geometry as rows, and the figures with their numbers beside them."""

from __future__ import annotations

import csv
import json
import math

import pytest
import torch

from roadkit import algebra
from roadkit.adapter import Adapter
from roadkit.analysis import figures, geometry
from roadkit.errors import RecipeError
from roadkit.intervene.training import TaskRow, answer_losses
from roadkit.modules import attached


def known(angle: float, scale: float) -> Adapter:
    names = [f"model.layers.{i}.{kind}" for i in range(3) for kind in ("self_attn.q_proj", "mlp.up_proj")]
    parameters = {
        name: (torch.full((8,), angle * (i + 1)), torch.full((8,), math.exp(scale))) for i, name in enumerate(names)
    }
    return Adapter.from_parameters(parameters, variant="road_1", group_size=4)


def check_files(written, rows) -> None:
    image, table, numbers = written
    assert image.read_bytes().startswith(b"\x89PNG")
    assert json.loads(numbers.read_text()) == rows
    with open(table, newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)


def test_angles_and_scales_are_those_that_were_put_in(tmp_path):
    rows = geometry.angles(known(-0.1, 0.2))
    by_place = {(row["layer"], row["module"], row["quantity"]): row for row in rows}
    assert len(by_place) == 12
    assert by_place[0, "q_proj", "angle"]["q50"] == pytest.approx(-0.1)
    assert by_place[2, "up_proj", "angle"]["q05"] == pytest.approx(-0.6)
    assert by_place[1, "q_proj", "log scale"]["q95"] == pytest.approx(0.2)
    check_files(figures.draw_angles(rows, tmp_path / "angles"), rows)


def test_heatmap_holds_means_of_absolute_values(tmp_path):
    rows = geometry.heatmap(known(-0.1, -0.2))
    assert rows[0]["mean_angle"] > 0
    cell = next(row for row in rows if (row["layer"], row["module"]) == (1, "up_proj"))
    assert cell["mean_angle"] == pytest.approx(0.4)
    assert cell["mean_log_scale"] == pytest.approx(0.2)
    check_files(figures.draw_heatmap(rows, tmp_path / "heatmap"), rows)


def test_general_blocks_have_angles_too(random_adapter, tiny_llama):
    rows = geometry.angles(random_adapter(tiny_llama(), variant="road_4"))
    assert all(math.isfinite(row["q50"]) for row in rows)


def test_distances_are_drawn_in_the_order_of_the_tree(tmp_path):
    adapters = {"far": known(0.5, 0), "a": known(0.1, 0), "far too": known(0.52, 0), "b": known(0.12, 0)}
    matrix = algebra.distances(list(adapters.values()))
    written = figures.draw_distances(list(adapters), matrix, tmp_path / "distance")
    rows = json.loads(written[2].read_text())
    assert len(rows) == 6
    assert rows[0] == {"one": "far", "other": "a", "distance": float(matrix[0, 1])}
    order = figures._leaves(4, algebra.cluster(matrix))
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({0, 2}), frozenset({1, 3})}


def test_sweep_is_the_loss_under_the_powered_adapter(tiny_llama, random_adapter, tmp_path):
    model = tiny_llama()
    adapter = random_adapter(model, 1)
    examples = [TaskRow("", [5, 6, 7, 8, 9 + i], [-100, -100, 7, 8, 9 + i]) for i in range(10)]
    rows = geometry.sweep(model, examples, adapter, (0.0, 0.5, 1.0))
    with torch.no_grad():
        assert rows[0]["loss"] == pytest.approx(float(answer_losses(model, examples).mean()), abs=1e-4)
        with attached(model, adapter**0.5):
            assert rows[1]["loss"] == pytest.approx(float(answer_losses(model, examples).mean()), abs=1e-4)
    assert rows[1]["loss"] != pytest.approx(rows[0]["loss"], abs=1e-3)
    written = figures.draw_sweep({"one": rows}, tmp_path / "sweep")
    check_files(written, [{"adapter": "one", **row} for row in rows])


def test_a_strength_without_a_power_is_left_empty(tiny_llama):
    model = tiny_llama()
    theta, alpha = torch.zeros(64), torch.ones(64)
    alpha[0] = -1
    bad = Adapter.from_parameters({"model.layers.0.self_attn.q_proj": (theta, alpha)}, variant="road_2", group_size=2)
    rows = geometry.sweep(model, [TaskRow("", [5, 6], [-100, 6])], bad, (0.5, 1.0))
    assert rows[0]["loss"] is None
    assert rows[1]["loss"] is not None


def test_trajectory_of_checkpoints(tmp_path):
    end = known(0.1, 0.2)
    for step in (10, 30, 20):
        (end ** (step / 30)).save(tmp_path / "task.run" / f"checkpoint-{step}")
    rows = geometry.trajectory(geometry.load_checkpoints(tmp_path / "task.run"))
    assert [row["step"] for row in rows] == [10, 10, 20, 20, 30, 30]
    last = rows[-1]
    assert last["to_last"] == 0
    assert rows[0]["from_base"] == pytest.approx(last["from_base"] / 3, rel=1e-4)
    assert rows[0]["to_last"] == pytest.approx(2 * rows[0]["from_previous"], rel=1e-4)
    check_files(figures.draw_trajectory(rows, tmp_path / "trajectory"), rows)
    with pytest.raises(RecipeError, match="holds no checkpoint-N folders"):
        geometry.load_checkpoints(tmp_path)
