"""GLUE on a tiny encoder: searches, presets and grids, and tasks in shared batches."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from typer.testing import CliRunner

from paper.cli import app
from paper.ledger import best_row
from paper.report.scores import chosen_runs, glue_groups
from paper.report.tables import result_tables
from paper.runs import glue
from paper.runs.glue import run_glue
from paper.tuning.encoders import ENCODER_SCALES
from roadkit import Adapter
from roadkit.errors import RecipeError, RoadkitError

FULL = ENCODER_SCALES["full"]


def test_glue_searches_then_reruns_the_best_on_further_seeds(encoder, data, ledger):
    options = {"data": data, "tasks": ["sst2", "stsb"], "methods": ["road_1", "head"], "seeds": 2, "num_rates": 2}
    assert run_glue(encoder, ledger, **options) == 0
    rows = ledger.rows()
    assert len(rows) == 2 * 2 * (2 + 1)
    for task in ("sst2", "stsb"):
        for method in ("road_1", "head"):
            own = [row for row in rows if row["recipe"]["task"] == task and row["recipe"]["method"] == method]
            first = [row for row in own if row["seed"] == 0]
            (again,) = [row for row in own if row["seed"] == 1]
            assert again["recipe"]["learning_rate"] == best_row(first)["recipe"]["learning_rate"]
            assert len({row["recipe"]["learning_rate"] for row in first}) == 2
    assert {row["metrics"]["metric"] for row in rows} == {"accuracy", "pearson"}
    run_glue(encoder, ledger, **options)
    assert len(ledger.rows()) == len(rows)


def test_a_shorter_search_chooses_the_rate_of_the_runs_that_count(encoder, data, ledger):
    settings = dataclasses.replace(encoder, epochs=2, search_epochs=1, bf16=True)
    run_glue(settings, ledger, data=data, tasks=["sst2"], methods=["road_1"], seeds=2, num_rates=2)
    rows = ledger.rows()
    short = [row for row in rows if row["recipe"]["epochs"] == 1]
    long = [row for row in rows if row["recipe"]["epochs"] == 2]
    assert [row["seed"] for row in short] == [0, 0] and [row["seed"] for row in long] == [0, 1]
    assert {row["recipe"]["learning_rate"] for row in long} == {best_row(short)["recipe"]["learning_rate"]}
    assert long[0]["metrics"]["steps"] == 2 * short[0]["metrics"]["steps"]


def test_presets_are_the_papers_settings(ledger, monkeypatch):
    monkeypatch.setattr(glue, "_compute", lambda rows, run, folder: {"epochs": run.settings.epochs, "rate": run.rate})
    monkeypatch.setattr(glue._GlueJobs, "_rows", lambda self, run: None)
    options: dict[str, Any] = {"data": None, "tasks": ["rte", "mnli"], "methods": ["road_1"], "presets": True}
    run_glue(FULL, ledger, **options, seeds=3)
    found = {(row["recipe"]["task"], row["recipe"]["batch_size"], *row["metrics"].values()) for row in ledger.rows()}
    assert found == {("rte", 32, 20, 3e-3), ("mnli", 16, 10, 1e-3)}
    ((group, _),) = glue_groups(ledger.rows())  # one table, though epochs and batch sizes differ
    assert len(ledger.rows()) == 6
    with pytest.raises(RecipeError, match="presets of RoAd on roberta-base and roberta-large"):
        run_glue(dataclasses.replace(FULL, model="minilm"), ledger, **options)
    with pytest.raises(RecipeError, match="not of lora"):
        run_glue(FULL, ledger, **options | dict[str, Any](methods=["lora"]))


def test_glue_names_what_is_missing(encoder, tmp_path, ledger):
    with pytest.raises(RecipeError, match=r"no glue/rte_train\.jsonl, glue/rte_dev\.jsonl in"):
        run_glue(encoder, ledger, data=tmp_path, tasks=["rte"], methods=["head"])
    with pytest.raises(RecipeError, match="did you mean 'rte'"):
        run_glue(encoder, ledger, data=tmp_path, tasks=["rtee"], methods=["head"])


def test_rows_of_several_tasks_in_shared_batches_score_as_alone(encoder, data, ledger, tmp_path):
    settings = dataclasses.replace(encoder, head_learning_rate=5e-3)
    options = {"data": data, "tasks": ["sst2", "stsb"], "methods": ["road_1", "head"], "num_rates": 2}
    run_glue(settings, ledger, **options, output=tmp_path / "kept")
    *alone, together = ledger.rows()
    assert len(alone) == 8 and together["recipe"]["experiment"] == "glue_together"
    assert together["recipe"]["task"] == ["sst2", "stsb"] and together["recipe"]["method"] == "road_1"
    assert together["metrics"]["test"] == pytest.approx(together["metrics"]["apart"], abs=1e-5)
    assert len(list((tmp_path / "kept").iterdir())) == 4  # every RoAd that may be the best, and no other method
    assert Adapter.load(next((tmp_path / "kept").iterdir())).heads.keys() == {"classifier", "bert.pooler"}


def test_shared_batches_say_whose_adapter_is_not_there(encoder, data, ledger, tmp_path):
    told = []
    options = {"data": data, "methods": ["road_1"], "num_rates": 1, "progress": told.append}
    run_glue(encoder, ledger, tasks=["sst2"], **options)
    run_glue(encoder, ledger, tasks=["sst2", "stsb"], **options, output=tmp_path / "kept")
    assert len(ledger.rows()) == 2
    assert f"left out, no adapter of sst2 is in {tmp_path / 'kept'}" in told[-1]


def test_a_grid_searches_epochs_and_batch_sizes_too(ledger, monkeypatch):
    def compute(rows, run, folder):
        good = (run.settings.epochs, run.settings.batch_size, run.rate) == (10, 32, 3e-3)
        return {"metric": "accuracy", "validation": float(good), "test": 0.5, "trainable": 7, "steps": 1}

    monkeypatch.setattr(glue, "_compute", compute)
    monkeypatch.setattr(glue._GlueJobs, "_rows", lambda self, run: None)
    run_glue(FULL, ledger, data=None, tasks=["rte", "sst2"], methods=["road_1"], seeds=3, grid=True)
    rows = ledger.rows()
    assert len(rows) == 4 * (2 * 2 + 2) + 2 * 2  # sst2 has one number of epochs; two more seeds of each best
    again = [row["recipe"] for row in rows if row["seed"]]
    assert {(row["epochs"], row["batch_size"], row["learning_rate"]) for row in again} == {(10, 32, 3e-3)}
    ((group, search),) = glue_groups(rows)
    found = chosen_runs(group, search)["road_1"]
    assert {task: (sorted(kept), tried) for task, (kept, tried) in found.items()} == {
        "rte": ([0, 1, 2], 16),
        "sst2": ([0, 1, 2], 8),
    }
    assert "10 or 20 epochs, batches of 16 or 32" in result_tables(rows)["glue"]
    assert "--scale full --tasks rte,sst2 --methods road_1 --rates 4 --seeds 3" in result_tables(rows)["summary"]


def test_a_grid_and_fixed_epochs_contradict_each_other(tmp_path):
    words = ["glue", "--grid", "--epochs", "3", "--ledger", str(tmp_path / "ledger.jsonl")]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, RoadkitError) and "--grid searches epochs and batch sizes" in str(done.exception)
