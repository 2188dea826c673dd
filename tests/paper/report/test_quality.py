"""Figure 1 takes the largest scale, the tasks that all methods have, and the rates that count."""

from __future__ import annotations

import pytest

from paper.report.figures import draw_figures
from paper.report.quality import MARKERS, quality_data
from paper.report.tables import result_tables
from paper.tuning.methods import METHODS
from tests.paper.report.conftest import glue_row, search_and_runs


def reasoning_row(experiment, method, accuracy, trainable, seed=0, **changes):
    setup = {"experiment": experiment, "scale": "small", "model": "smollm2", "rows": 8, "method": method}
    metrics = {"accuracy": accuracy, "trainable": trainable}
    return {"recipe": setup | {"learning_rate": 0.0} | changes, "seed": seed, "metrics": metrics}


def test_figure_1_takes_the_largest_scale_and_the_tasks_that_all_methods_have():
    search, final = search_and_runs(rows=20)
    rows = [
        *search, *final, glue_row("lora", test=0.3, rows=20, search_epochs=2, rate=2e-3),
        glue_row(task="cola", test=0.9, rows=20, search_epochs=2), glue_row(test=0.99),
    ]  # fmt: skip
    road, lora = quality_data(rows)
    assert (road["panel"], road["tasks"], road["method"], road["trainable"]) == ("glue", "rte", "road_1", 100)
    assert (road["score"], road["seeds"], road["deviation"]) == (0.7, 2, pytest.approx(0.141421))
    assert (lora["score"], lora["seeds"], lora["deviation"]) == (0.3, 1, "")
    assert "20 training rows" in road["scale"]


def test_figure_1_averages_the_tasks_of_each_suite_and_is_drawn(tmp_path):
    rows = [
        reasoning_row("commonsense", "base", {"boolq": 0.5, "piqa": 0.0}, 0),
        reasoning_row("commonsense", "road_1", {"boolq": 0.5, "piqa": 0.7}, 100),
        reasoning_row("commonsense", "road_1", {"boolq": 0.7, "piqa": 0.9}, 100, seed=1),
        reasoning_row("commonsense", "new", {"boolq": 0.7, "piqa": 0.9}, 50),
        reasoning_row("commonsense", "base", {"boolq": 1.0}, 0, rows=4),
        reasoning_row("arithmetic", "base", {"svamp": 0.25}, 0),
    ]
    found = {(row["panel"], row["method"]): (row["score"], row["seeds"]) for row in quality_data(rows)}
    assert found == {
        ("commonsense", "base"): (0.25, 1), ("commonsense", "road_1"): (0.7, 2), ("commonsense", "new"): (0.8, 1),
        ("arithmetic", "base"): (0.25, 1),
    }  # fmt: skip
    assert [path.name for path in draw_figures(rows, tmp_path)] == ["figure1.csv", "figure1.png"]
    assert (tmp_path / "figure1.png").read_bytes().startswith(b"\x89PNG")


def suite_row(method, rate, score, part="", **changes):
    row = reasoning_row(
        f"arithmetic{part}", method, {"svamp": score}, 9, learning_rate=rate, tasks=["svamp"], **changes
    )
    return row | {"metrics": row["metrics"] | {"validation": score}}


def test_a_suites_search_decides_which_rate_counts_if_that_ran():
    runs = [suite_row("road_1", 3e-3, 0.6), suite_row("road_1", 1e-3, 0.5), suite_row("lora", 5e-4, 0.4)]
    search = [
        suite_row("road_1", 3e-3, 0.1, "_search", rows=4, questions=7),
        suite_row("road_1", 1e-3, 0.2, "_search", rows=4, questions=7),
        suite_row("lora", 1.5e-3, 0.9, "_search", rows=4, questions=7),  # did not run
    ]
    other = [
        suite_row("road_1", 3e-3, 0.9, "_search", rows=2, questions=7),  # a smaller search
        suite_row("road_1", 3e-3, 0.9, "_search", rows=6, questions=7, model="another"),
    ]

    def counted(rows):
        return {row["method"]: row["score"] for row in quality_data(rows)}

    assert counted(runs) == {"road_1": 0.6, "lora": 0.4}  # the first that ran
    assert counted([*runs, *other, *search]) == {"road_1": 0.5, "lora": 0.4}
    found = result_tables([*runs, *other, *search])
    cells = [line.split(" | ") for line in found["arithmetic"].splitlines() if line.startswith("| ")][2:]
    assert [row[2] for row in cells] == ["0.003", "0.001†", "0.0005"]
    assert "† the learning rate that the search chose*" in found["arithmetic"]
    assert found["arithmetic_search"].count("held out of the training rows") == 3
    assert "| RoAd1 | 9 | 0.001† | 20.0 | 20.0 |" in found["arithmetic_search"]
    assert "†" not in result_tables(runs)["arithmetic"]


def test_figure_1_without_rows_or_shared_tasks_is_nothing(tmp_path):
    assert quality_data([]) == []
    assert quality_data([glue_row(), glue_row("lora", task="cola")]) == []
    assert draw_figures([], tmp_path) == []
    assert len(set(MARKERS)) == len(MARKERS) > len(METHODS)
