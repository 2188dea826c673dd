"""Two families: searched alike, one member of each chosen on validation, and only those run with further seeds."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from paper.cli import app
from paper.report.tables import result_tables
from paper.runs import glue
from paper.runs.families import choose_members, run_families, validation_scores
from paper.tuning.encoders import EncoderSettings
from paper.tuning.methods import FAMILIES, find_method

NAMES = [name for names in FAMILIES.values() for name in names]
BEST = {"RoAd": "road_2_attention", "LoRA": "lora_alpha_32"}


def made_up(run) -> dict:
    """Validation prefers `BEST` on average, though not on every task, and test says something else."""
    good = run.method in BEST.values()
    validation = {"rte": 0.9 if good else 0.5, "sst2": 0.5 if good else 0.6}[run.task]
    validation -= 0.2 * (run.rate != find_method(run.method).rates_at("small", 1)[0])  # the first rate is the best
    return {"metric": "accuracy", "validation": validation, "test": 0.1 * run.seed, "trainable": len(run.method)}


@pytest.fixture
def pretended(monkeypatch):
    monkeypatch.setattr(glue, "_compute", lambda rows, run, folder: made_up(run))
    monkeypatch.setattr(glue._GlueJobs, "_rows", lambda self, run: None)


def run_small(ledger, **options):
    settings = EncoderSettings(epochs=4, search_epochs=2)
    options = {"data": None, "tasks": ["rte", "sst2"], "seeds": 3, "num_rates": 2} | options
    return run_families(settings, ledger, **options)


def test_every_member_is_searched_and_the_best_of_each_family_runs_with_every_seed(pretended, ledger):
    assert run_small(ledger) == 0
    search = [row["recipe"] for row in ledger.rows() if row["recipe"]["epochs"] == 2]
    assert sorted(setup["method"] for setup in search) == sorted(NAMES * 2 * 2)  # tasks, rates
    final = [(row["recipe"]["method"], row["recipe"]["task"], row["seed"]) for row in ledger.rows()[len(search) :]]
    assert sorted(final) == sorted(
        (name, t, seed) for name in BEST.values() for t in ("rte", "sst2") for seed in range(3)
    )
    assert {name for name, _, _ in final} == set(BEST.values())
    before = len(ledger.rows())
    assert run_small(ledger) == 0 and len(ledger.rows()) == before


def test_nothing_is_chosen_before_the_whole_search_is_done(pretended, ledger):
    assert run_small(ledger, budget=0) == len(NAMES) * 2 * 2
    assert ledger.rows() == []
    run_small(ledger)
    rows = [row for row in ledger.rows() if (row["recipe"]["method"], row["recipe"]["task"]) != ("lora", "rte")]
    assert choose_members(validation_scores(row for row in rows if row["recipe"]["epochs"] == 2), ["rte", "sst2"]) == {
        "RoAd": "road_2_attention"
    }
    assert result_tables(rows)["glue_recipes"] == "No finished run yet."


def test_the_budget_is_of_the_search_and_the_chosen_runs_together(pretended, ledger, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("os.times", lambda: (clock[0], 0.0, 0.0, 0.0, 0.0))
    compute = glue._compute
    monkeypatch.setattr("paper.runs.jobs.gc.collect", lambda: 0)
    monkeypatch.setattr(glue, "_compute", lambda *args: clock.append(clock.pop() + 60) or compute(*args))
    search = len(NAMES) * 2 * 2
    assert run_small(ledger, budget=search + 2.5) == 2 * 2 * 3 - 2  # a minute each
    assert len(ledger.rows()) == search + 2


def test_the_table_shows_all_validations_and_the_test_scores_of_those_chosen(pretended, ledger):
    run_small(ledger)
    table = result_tables(ledger.rows())["glue_recipes"].splitlines()
    cells = {line.split(" | ")[0].removeprefix("| "): line.strip("| ").split(" | ")[1:] for line in table[4:]}
    assert cells["RoAd1"] == ["6", "55.0", "–", "–", "–"]  # (50 + 60) / 2
    assert cells["RoAd2(attention)"][1:] == ["70.0", "10.0 ± 10.0", "10.0 ± 10.0", "10.0"]
    assert cells["RoAd2(attention) − LoRA r=8, α=32, 3 seeds"] == ["–", "–", *["+0.0 [+0.0, +0.0]"] * 3]
    assert len(cells) == len(NAMES) + 1


def test_all_members_really_train(encoder, data, ledger):
    assert run_families(encoder, ledger, data=data, tasks=["sst2"], num_rates=1) == 0
    assert {row["recipe"]["method"] for row in ledger.rows()} == set(NAMES)


def test_recipes_and_other_choices_contradict_each_other(tmp_path):
    for words in (["--methods", "lora"], ["--presets"]):
        result = CliRunner().invoke(app, ["glue", "--recipes", "--ledger", str(tmp_path / "l"), *words])
        assert result.exit_code and "--recipes chooses the methods" in str(result.exception)
    result = CliRunner().invoke(app, ["glue", "--recipes", "--grid", "--ledger", str(tmp_path / "l")])
    assert result.exit_code and "leave out what fixes them" in str(result.exception)
