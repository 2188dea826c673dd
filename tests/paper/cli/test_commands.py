"""`python -m paper …` from the command line, on tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from paper.cli import PANELS, app
from paper.ledger import Ledger
from paper.runs import reasoning
from paper.runs.reasoning import RateSearch
from roadkit.errors import RecipeError, RoadkitError


def run_paper(*words: object) -> dict:
    done = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=False)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


def test_pilot(bert, data, path):
    words = ["--rows", 8, "--validation", 4, "--test", 4, "--epochs", 1, "--methods", "road_1", "--tasks", "stsb"]
    assert run_paper("pilot", "--model", bert, "--data", data, "--ledger", path, *words)["runs"] == 3


@pytest.mark.parametrize(("suite", "task"), [("commonsense", "boolq"), ("arithmetic", "svamp")])
def test_suites_take_several_seeds(llama, data, path, suite, task):
    words = ["--rows", 4, "--questions", 1, "--new-tokens", 2, "--tasks", task, "--methods", "base,full"]
    found = run_paper(suite, "--model", llama, "--data", data, "--ledger", path, *words, "--seed", 1, "--seeds", 2)
    assert found == {"ledger": str(path), "runs": 4, "left": 0}
    assert [(row["recipe"]["method"], row["seed"]) for row in Ledger(path).rows()] == [
        ("base", 1), ("full", 1), ("base", 2), ("full", 2),
    ]  # fmt: skip


def test_a_search_is_asked_for_by_its_rates(path, monkeypatch):
    asked = []
    monkeypatch.setattr(reasoning, "run_suite", lambda *_, **options: asked.append(options["search"]) or 0)
    for words in ((), ("--rates", 2), ("--rates", 4, "--search-rows", 7, "--held-out", 5)):
        run_paper("arithmetic", "--ledger", path, *words)
    assert asked == [None, RateSearch(rates=2), RateSearch(4, 7, 5)]
    with pytest.raises(RoadkitError, match="--rates 3 makes one"):
        run_paper("arithmetic", "--ledger", path, "--held-out", 5)


def test_a_scales_settings_hold_unless_an_option_says_otherwise(path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        reasoning, "run_suite", lambda suite, settings, *_, **options: asked.append((settings, options)) or 0
    )
    for words in ((), ("--no-bf16", "--seeds", 1)):
        run_paper("commonsense", "--scale", "full", "--ledger", path, *words)
    (usual, options), (other, fewer) = asked
    assert usual == reasoning.SUITE_SCALES["commonsense"]["full"] and usual.bf16 and not other.bf16
    assert (list(options["seeds"]), list(fewer["seeds"])) == ([0, 1, 2], [0])


def test_instruct_then_the_judges_file(llama, data, path, tmp_path):
    words = ["--rows", 2, "--questions", 2, "--new-tokens", 2, "--epochs", 1, "--methods", "base"]
    run_paper("instruct", "--model", llama, "--data", data, "--ledger", path, "-o", tmp_path / "out", *words)
    (answers,) = (tmp_path / "out").iterdir()
    judged = [entry | {"preference": 1 + i} for i, entry in enumerate(json.loads(answers.read_text()))]
    (tmp_path / "annotations.json").write_text(json.dumps(judged))
    assert run_paper("win-rate", tmp_path / "annotations.json") == {"win_rate": 0.5, "entries": 2}
    (tmp_path / "annotations.json").write_text(json.dumps(judged[0]))
    with pytest.raises(RecipeError, match="a list of objects is wanted"):
        run_paper("win-rate", tmp_path / "annotations.json")


def test_report_rebuilds_a_page(llama, data, path, tmp_path):
    words = ["--rows", 4, "--questions", 1, "--new-tokens", 2, "--tasks", "boolq", "--methods", "base"]
    run_paper("commonsense", "--model", llama, "--data", data, "--ledger", path, *words)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "results.md").write_text("Before\n<!-- table: commonsense -->\n<!-- end -->\nafter\n")
    found = run_paper("report", tmp_path / "none", "--ledger", path, "--docs", docs)
    assert str(docs / "results.md") in found["tables"]
    text = (docs / "results.md").read_text()
    assert text.startswith("Before") and text.endswith("after\n") and "mean by LoReFT's rule" in text
    assert "| base | 0 |" in text


def test_the_help_lists_every_command_in_its_panel():
    done = CliRunner().invoke(app, ["--help"])
    assert done.exit_code == 0 and "Usage: python -m paper" in done.stdout
    assert all(panel in done.stdout for panel in PANELS)


@pytest.mark.slow
def test_a_first_command_without_data_ends_in_one_line(tmp_path):
    environment = os.environ | {"ROADKIT_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "paper", "glue", "--tasks", "rte", "--ledger", str(tmp_path / "ledger.jsonl")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: there is no glue/rte_train.jsonl, glue/rte_dev.jsonl in {tmp_path / 'paper-data'}")
    assert "--data" in line


def test_a_report_without_any_ledger_says_where_it_looked(tmp_path):
    with pytest.raises(RoadkitError, match="neither .* is there: run an experiment first"):
        run_paper("report", tmp_path / "none", "--ledger", tmp_path / "ledger.jsonl")
