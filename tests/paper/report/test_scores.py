"""Searches and paired differences on hand-made rows with hand-worked numbers."""

from __future__ import annotations

import dataclasses

import pytest

from paper.report.figures import FIGURES
from paper.report.scores import glue_groups, paired_difference
from paper.report.tables import result_tables
from paper.runs.glue import run_glue
from tests.paper.report.conftest import glue_row, search_and_runs


def test_a_search_counts_rates_and_is_no_table_of_its_own():
    search, final = search_and_runs()
    table = result_tables(search + final)["glue"]
    assert table.count("*small: ") == 1
    assert "9 epochs, 2 seeds; learning rates chosen in runs of 2 epochs, in brackets how many were tried*" in table
    assert "| RoAd1 | 100 | 70.0 ± 14.1 (3) | 70.0 |" in table
    data = FIGURES["glue"][1](search + final)
    assert [row["test"] for row in data] == [0.6, 0.8]


def test_the_rows_of_a_real_search_are_found(encoder, data, ledger):
    settings = dataclasses.replace(encoder, epochs=2, search_epochs=1)
    options = {"data": data, "tasks": ["sst2"], "methods": ["road_1", "head"], "num_rates": 2, "seeds": 2}
    assert run_glue(settings, ledger, **options) == 0
    ((group, search),) = glue_groups(ledger.rows())
    assert (len(group), len(search)) == (2 * 2, 2 * 2)  # seeds and rates of two methods
    table = result_tables(ledger.rows())["glue"]
    assert table.count(" (2) |") == 2
    assert "learning rates chosen in runs of 1 epoch," in table


def test_a_search_without_its_final_runs_or_with_further_seeds_is_shown():
    search, final = search_and_runs()
    assert "| RoAd1 | 100 | 10.0 (3) | 10.0 |" in result_tables(search)["glue"]
    further = glue_row(rate=2e-3, seed=1, epochs=2, test=0.3)
    table = result_tables([*search, further, *final])["glue"]
    assert "| RoAd1 | 100 | 20.0 ± 14.1 (3) | 20.0 |" in table  # (10 + 30) / 2
    assert "| RoAd1 | 100 | 70.0 ± 14.1 (3) | 70.0 |" in table


def test_the_search_of_another_scale_stays():
    search, final = search_and_runs()
    other = [glue_row(epochs=2, rows=99), glue_row(epochs=2, bf16=True), glue_row(epochs=3)]
    assert [len(group) for group, _ in glue_groups(search + final + other)] == [2, 1, 1, 1]


def test_the_search_decides_and_a_rate_that_did_not_run_is_a_gap():
    search, final = search_and_runs()
    search.append(glue_row(rate=4e-3, validation=0.9, epochs=2))  # tried later, its final runs are yet to come
    assert "| RoAd1 | 100 | – | – |" in result_tables(search + final)["glue"]
    final.append(glue_row(rate=4e-3, validation=0.1, test=0.9, search_epochs=2))
    assert "| RoAd1 | 100 | 90.0 (4) | 90.0 |" in result_tables(search + final)["glue"]


def test_final_runs_without_their_search_have_an_unknown_number_of_rates():
    assert "| RoAd1 | 100 | 70.0 ± 14.1 (?) | 70.0 |" in result_tables(search_and_runs()[1])["glue"]


def test_rows_from_before_a_setting_share_the_table_of_those_without_it():
    new, old = glue_row(seed=1, test=0.7), glue_row(test=0.5)
    for name in ("bf16", "search_epochs"):
        del old["recipe"][name]
    table = result_tables([old, new])["glue"]
    assert table.count("*small: ") == 1
    assert "60.0 ± 14.1 (1)" in table
    assert "2 seeds; in brackets how many learning rates were tried*" in table


def test_paired_differences_by_hand():
    found = paired_difference(
        {0: 0.8, 1: 0.9, 5: 0.1}, {0: 0.7, 1: 0.6, 2: 0.9}
    )  # differences 0.1 and 0.3, of seeds 0 and 1
    assert found is not None
    assert found == pytest.approx((0.2, 0.1, 0.3, 2))  # means of two draws: 0.1, 0.2, 0.2, 0.3, equally likely
    assert paired_difference({0: 1.0, 1: 1.0}, {1: 0.5}) is None
    assert paired_difference({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6}) == (0, 0, 0, 2)


def test_the_interval_is_the_exact_one_of_all_draws():
    """0, 0, 0 and 0.4: 4 draws hold the last one 0 to 4 times, binomially with p = 1/4; the mean is a tenth of that."""
    found = paired_difference(dict.fromkeys(range(4), 0.4), {0: 0.4, 1: 0.4, 2: 0.4, 3: 0.0})
    assert found == pytest.approx((0.1, 0.0, 0.3, 4))  # P(0) = 0.32; P(≤ 2) = 0.949, P(≤ 3) = 0.996


def test_the_last_line_pairs_seeds_task_by_task_and_their_mean():
    rte = {"road_1": (0.8, 0.9), "lora": (0.7, 0.6)}  # + 0.1, + 0.3
    cola = {"road_1": (0.5, 0.5), "lora": (0.6, 0.8)}  # − 0.1, − 0.3: the means differ by 0 and 0
    rows = [
        glue_row(method, seed=seed, test=test, task=task)
        for task, scores in (("rte", rte), ("cola", cola))
        for method, tests in scores.items()
        for seed, test in enumerate(tests)
    ]
    table = result_tables(rows)["glue"]
    line = "| RoAd1 − LoRA r=8, 2 seeds | – | +20.0 [+10.0, +30.0] | -20.0 [-30.0, -10.0] |"
    (found,) = [text for text in table.splitlines() if text.startswith("| RoAd1 − ")]
    assert found.startswith(line)
    assert found.replace("-0.0", "+0.0").endswith("| +0.0 [+0.0, +0.0] |")
    assert "by resampling seeds" in table
    assert result_tables(rows)["glue"] == table
    one_seed = [row for row in rows if row["seed"] == 0]
    assert "−" not in result_tables(one_seed)["glue"]
    assert "resampling" not in result_tables(one_seed)["glue"]
    assert "−" not in result_tables([row for row in rows if row["recipe"]["method"] == "lora"])["glue"]
