"""Rows that a suite trains on and asks, and the scores of answers."""

from __future__ import annotations

import json

import pytest

from paper.scoring.suites import SUITES, held_out_rows, score_suite, training_rows
from roadkit.errors import RecipeError


def test_held_out_rows_are_none_of_a_search_runs_own(data):
    suite = SUITES["commonsense"]
    table, asked = held_out_rows(suite, data, rows=12, questions=4)
    assert set(asked) == set(suite.trained) and all(len(rows) == 4 for rows in asked.values())
    assert len(table) == 12
    for i, rows in enumerate(asked.values()):  # eight of each task in all
        own = [row["instruction"] for row in table.rows[3 * i : 3 * i + 3]]
        assert not set(own) & {row["instruction"] for row in rows}
    with pytest.raises(RecipeError, match="has 8 rows, 8 are to be held out"):
        held_out_rows(suite, data, rows=12, questions=8)


def test_another_tasks_answer_word_is_counted_apart_from_none():
    asked = {"piqa": [{"answer": "solution1"}] * 3, "boolq": [{"answer": "true"}]}
    texts = ["solution2 or solution1", "the correct answer is answer1", "I do not know", "true"]
    found = score_suite(SUITES["commonsense"], asked, texts)
    assert found["accuracy"] == {"piqa": 0, "boolq": 1}
    assert (found["answered"], found["foreign"]) == (0.5, 0.25)


def test_the_full_scale_reads_the_papers_file(data, tmp_path):
    full = {"scale": "full", "rows": 2, "seed": 0}
    (tmp_path / "math").mkdir()
    rows = [{"instruction": "1?", "input": "", "output": "1", "answer": "1"}] * 3
    (tmp_path / "math" / "math_10k.json").write_text(json.dumps(rows))
    suite = SUITES["arithmetic"]
    assert len(training_rows(suite, tmp_path, **full)) == 2
    with pytest.raises(RecipeError, match=r"no math/math_10k\.jsonl in"):
        training_rows(suite, data, **full)
