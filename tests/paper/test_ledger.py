"""Finished runs are kept, a run done again counts once, and what a kill left counts for nothing."""

from __future__ import annotations

import pytest

from paper.ledger import FIELDS, Ledger, best_row, run_key
from roadkit.errors import RecipeError


def test_a_ledger_keeps_finished_runs(tmp_path):
    ledger = Ledger(tmp_path / "runs" / "ledger.jsonl")
    assert ledger.rows() == []
    ledger.append({"lr": 1, "arm": "a"}, seed=0, metrics={"loss": 1.5}, seconds=2.04)
    ledger.append({"lr": 1, "arm": "a"}, seed=1, metrics={"loss": 2.5}, seconds=1)
    found = Ledger(ledger.path).find({"arm": "a", "lr": 1}, seed=0)
    assert found is not None
    assert found.keys() == FIELDS
    assert (found["metrics"], found["seconds"]) == ({"loss": 1.5}, 2.0)
    assert ledger.find({"lr": 2, "arm": "a"}, seed=0) is None
    assert run_key({"a": 1, "b": 2}, 0) == run_key({"b": 2, "a": 1}, 0) != run_key({"a": 1, "b": 2}, 1)
    assert run_key({"a": 1, "new": None, "newer": False}, 0) == run_key({"a": 1}, 0) != run_key({"a": 1, "new": 0}, 0)


def test_of_a_run_done_again_the_last_counts(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for arm, value in (("a", 1), ("b", 2), ("a", 3)):
        ledger.append({"arm": arm}, seed=0, metrics={"value": value}, seconds=1)
    assert [row["metrics"]["value"] for row in ledger.rows()] == [3, 2]
    found = ledger.find({"arm": "a"}, seed=0)
    assert found is not None and found["metrics"] == {"value": 3}


def test_a_line_that_a_kill_left_counts_for_nothing(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append({"arm": "a"}, seed=0, metrics={}, seconds=1)
    with open(ledger.path, "ab") as file:
        file.write(b'{"key": "half a li')
    assert len(ledger.rows()) == 1
    ledger.append({"arm": "b"}, seed=0, metrics={}, seconds=1)
    assert [row["recipe"]["arm"] for row in ledger.rows()] == ["a", "b"]


def test_a_spoilt_ledger_is_named(tmp_path):
    (tmp_path / "ledger.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(RecipeError, match=r"line 1 is no run"):
        Ledger(tmp_path / "ledger.jsonl").rows()
    (tmp_path / "ledger.jsonl").write_text('{"key": 1, "code": "0.0.1 abc"}\n')
    with pytest.raises(RecipeError, match=r"no run of this version \(written by roadkit 0\.0\.1 abc, this is 0\.1\.0"):
        Ledger(tmp_path / "ledger.jsonl").rows()
    (tmp_path / "ledger.jsonl").write_text("nonsense\n")
    with pytest.raises(RecipeError, match=r"line 1 is not JSON"):
        Ledger(tmp_path / "ledger.jsonl").rows()


def test_of_equal_scores_the_smaller_loss_is_better():
    rows = [{"metrics": {"validation": 0.0, "validation_loss": loss}} for loss in (0.7, 0.6, 0.65)]
    assert best_row(rows) is rows[1]
