"""Suites on a tiny decoder: methods, learning rates and their search, epochs."""

from __future__ import annotations

import dataclasses

import pytest

from paper.report.quality import quality_data
from paper.report.scores import is_search, suite_choices
from paper.report.tables import result_tables
from paper.runs import reasoning
from paper.runs.reasoning import RateSearch, run_suite
from paper.tuning.decoders import TunedDecoder
from roadkit.errors import RecipeError
from roadkit.train.data.tables import Table


def test_commonsense_answers_with_an_adapter_and_merged(decoder, data, ledger):
    options = {"data": data, "tasks": ["boolq", "hellaswag"]}
    assert run_suite("commonsense", decoder, ledger, methods=["base", "road_1", "lora"], **options) == 0
    for row in ledger.rows():
        assert set(row["metrics"]["accuracy"]) == {"boolq", "hellaswag"}
        assert row["metrics"]["questions"] == {"boolq": 2, "hellaswag": 1}
    assert [row["metrics"]["trainable"] > 0 for row in ledger.rows()] == [False, True, True]
    with pytest.raises(RecipeError, match="did you mean 'boolq'"):
        run_suite("commonsense", decoder, ledger, data=data, tasks=["boolqq"])


def test_runs_at_another_learning_rate_are_told_apart(decoder, data, ledger):
    options = {"data": data, "tasks": ["boolq"], "methods": ["base", "road_1"]}
    for rate in (None, 1e-3):
        run_suite("commonsense", decoder, ledger, learning_rate=rate, **options)
    assert [row["recipe"]["learning_rate"] for row in ledger.rows()] == [0.0, 3e-3, 1e-3]
    lines = result_tables(ledger.rows())["commonsense"].splitlines()[4:7]
    assert [line.split(" | ")[0:3:2] for line in lines] == [["| base", "–"], ["| RoAd1", "0.003"], ["| RoAd1", "0.001"]]
    assert [(row["method"], row["seeds"]) for row in quality_data(ledger.rows())] == [("base", 1), ("road_1", 1)]


def test_a_search_chooses_each_methods_learning_rate_before_its_runs(decoder, data, ledger):
    search = RateSearch(rates=2, rows=4, held_out=1)
    options = {"data": data, "tasks": ["boolq"], "search": search}
    methods = ["base", "road_1", "lora"]
    run_suite("commonsense", decoder, ledger, methods=methods, seeds=(0, 1), **options)
    tried, runs = ([row["recipe"] for row in ledger.rows() if is_search(row) == wanted] for wanted in (True, False))
    assert [(setup["method"], setup["learning_rate"]) for setup in tried] == [
        ("road_1", 3e-3), ("lora", 5e-4), ("road_1", 1e-3), ("lora", 1.7e-4),
    ]  # fmt: skip
    assert {(setup["rows"], setup["questions"]) for setup in tried} == {(4, 1)}
    rates = suite_choices([row for row in ledger.rows() if is_search(row)])
    assert [setup["method"] for setup in runs] == 2 * methods
    assert [setup["learning_rate"] for setup in runs] == 2 * [0.0, rates["road_1"], rates["lora"]]
    run_suite("commonsense", decoder, ledger, methods=methods, seeds=(0, 1), **options)
    assert len(ledger.rows()) == len(tried) + len(runs)
    with pytest.raises(RecipeError, match=r"a search chooses .* 0\.001 was given"):
        run_suite("commonsense", decoder, ledger, learning_rate=1e-3, **options)


def test_the_best_rate_on_held_out_rows_is_run_and_an_unfinished_search_waits(decoder, data, ledger, monkeypatch):
    search = RateSearch(rates=3, rows=4, held_out=1)
    for method, rate, score in (
        ("road_1", 3e-3, 0.4),
        ("road_1", 1e-3, 0.7),
        ("road_1", 9e-3, 0.5),
        ("lora", 5e-4, 0.9),
    ):
        setup = search.setup("commonsense", decoder, method, rate)
        ledger.append(setup, seed=0, metrics={"validation": score}, seconds=1)
    options = {"data": data, "search": search}
    left = run_suite("commonsense", decoder, ledger, methods=["road_1", "lora"], budget=0, **options)
    assert left == 1 + 2  # RoAd1's run, and two rates of LoRA, whose own run is not known yet
    monkeypatch.setattr(reasoning._SuiteRuns, "compute", lambda *_: {})
    run_suite("commonsense", decoder, ledger, methods=["road_1"], **options)
    assert ledger.rows()[-1]["recipe"]["learning_rate"] == 1e-3


def test_the_best_epoch_is_reported(decoder, data, ledger, monkeypatch):
    given = iter([["true", "false"], ["true", "true"], ["false", "false"]])
    monkeypatch.setattr(TunedDecoder, "answer", lambda self, instructions, **options: next(given))
    monkeypatch.setattr(reasoning, "sample_rows", lambda table, count, seed: Table(
        [{"instruction": str(i), "output": "true", "answer": "true"} for i in range(2)], [1, 2], "ours"
    ))  # fmt: skip
    settings = dataclasses.replace(decoder, epochs=3)
    options = {"data": data, "tasks": ["boolq"], "methods": ["road_1"], "every_epoch": True}
    run_suite("commonsense", settings, ledger, **options)
    (row,) = ledger.rows()
    assert [epoch["boolq"] for epoch in row["metrics"]["epochs"]] == [0.5, 1.0, 0.0]
    assert row["metrics"]["accuracy"] == {"boolq": 1.0}
    assert row["recipe"]["every_epoch"]


def test_prefixes_answer_through_transformers(decoder, data, ledger):
    run_suite("commonsense", decoder, ledger, data=data, methods=["prefix"], tasks=["boolq"])
    (row,) = ledger.rows()
    assert row["metrics"]["trainable"] == 20 * 2 * 2 * (2 * 16) and row["metrics"]["questions"] == {"boolq": 2}
    with pytest.raises(RecipeError, match="prefix tuning keeps its last epoch only"):
        run_suite("commonsense", decoder, ledger, data=data, methods=["prefix"], tasks=["boolq"], every_epoch=True)


def test_the_papers_training_file_for_arithmetic_is_warned_of(decoder, data, ledger):
    told = []
    full = dataclasses.replace(decoder, scale="full")
    with pytest.raises(RecipeError, match=r"no math/math_10k\.jsonl, math/aqua_test\.jsonl, .*ft-training_set"):
        run_suite("arithmetic", full, ledger, data=data, methods=["road_1"], progress=told.append)
    assert told == ["math_10k holds rows that MAWPS tests: MAWPS scores say less than they seem to"]
