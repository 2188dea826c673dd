"""`roadkit plot …`: a figure and its numbers from every verb."""

from __future__ import annotations

import json

import pytest

from roadkit.adapter import Adapter
from roadkit.cli import app
from roadkit.errors import RoadkitError


def test_every_verb_writes_a_figure(runner, folder, tmp_path):
    for step, strength in ((10, 0.5), (30, 1)):
        (Adapter.load(folder / "formal") ** strength).save(tmp_path / "task.run" / f"checkpoint-{step}")
    out = tmp_path / "figures"
    for verb, source in (
        ("angles", folder),
        ("heatmap", folder),
        ("distance", folder),
        ("trajectory", tmp_path / "task.run"),
    ):
        command = ["plot", verb, str(source), "-o", str(out), "--json"]
        result = runner.invoke(app, command, catch_exceptions=False)
        files = json.loads(result.output)["files"]
        assert files
        assert all((tmp_path / file).exists() for file in files)
    names = {path.stem for path in out.glob("*.png")}
    figures = {"formal-angles", "german-angles", "formal-heatmap", "german-heatmap", "distance", "task-trajectory"}
    assert names == figures


def test_every_adapter_of_a_sweep_needs_its_data(runner, folder):
    with pytest.raises(RoadkitError, match="need one --data each"):
        runner.invoke(app, ["plot", "sweep", str(folder), "--data", "formal=x"], catch_exceptions=False)
