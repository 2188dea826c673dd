"""Searches, paired differences and figure 1 on hand-made rows with hand-worked numbers."""

from __future__ import annotations

import dataclasses

import pytest

from paper.report.figures import FIGURES, draw
from paper.report.quality import MARKERS, quality
from paper.report.scores import glue_groups, paired, scale_of
from paper.report.tables import tables
from paper.runs import glue
from paper.tuning.methods import METHODS


def glue_row(method="road_1", rate=1e-3, seed=0, validation=0.5, test=0.5, **changes):
    recipe = {
        "experiment": "glue", "scale": "small", "model": "minilm", "rows": 10, "epochs": 9, "bf16": False,
        "search_epochs": None, "task": "rte", "method": method, "learning_rate": rate,
    }  # fmt: skip
    trainable = {"head": 0, "road_1": 100}.get(method, 1000)
    metrics = {"metric": "accuracy", "validation": validation, "test": test, "trainable": trainable}
    return {"recipe": recipe | changes, "seed": seed, "metrics": metrics}


def searched(**changes):
    """Three rates tried in runs of 2 epochs; the best of them, 2e-3, runs for 9 epochs with two seeds."""
    search = [
        glue_row(rate=rate, validation=validation, test=0.1, epochs=2, **changes)
        for rate, validation in ((1e-3, 0.4), (2e-3, 0.8), (3e-3, 0.6))
    ]
    final = [
        glue_row(rate=2e-3, seed=seed, test=test, search_epochs=2, **changes) for seed, test in enumerate((0.6, 0.8))
    ]
    return search, final


def reasoning_row(experiment, method, accuracy, trainable, seed=0, **changes):
    recipe = {"experiment": experiment, "scale": "small", "model": "smollm2", "rows": 8, "method": method}
    metrics = {"accuracy": accuracy, "trainable": trainable}
    return {"recipe": recipe | {"learning_rate": 0.0} | changes, "seed": seed, "metrics": metrics}


def test_a_search_counts_rates_and_is_no_table_of_its_own():
    search, final = searched()
    table = tables(search + final)["glue"]
    assert table.count("*small: ") == 1
    assert "9 epochs, 2 seeds; learning rates chosen in runs of 2 epochs, in brackets how many were tried*" in table
    assert "| RoAd1 | 100 | 70.0 ± 14.1 (3) | 70.0 |" in table
    data = FIGURES["glue"][1](search + final)
    assert [row["test"] for row in data] == [0.6, 0.8]


def test_the_rows_of_a_real_search_are_found(small, data, ledger):
    settings = dataclasses.replace(small, epochs=2, search_epochs=1)
    options = {"data": data, "tasks": ["sst2"], "methods": ["road_1", "head"], "num_rates": 2, "seeds": 2}
    assert glue.run(settings, ledger, **options) == 0
    ((group, search),) = glue_groups(ledger.rows())
    assert (len(group), len(search)) == (2 * 2, 2 * 2)  # seeds and rates of two methods
    table = tables(ledger.rows())["glue"]
    assert table.count(" (2) |") == 2
    assert "learning rates chosen in runs of 1 epoch," in table


def test_a_search_without_its_final_runs_or_with_further_seeds_is_shown():
    search, final = searched()
    assert "| RoAd1 | 100 | 10.0 (3) | 10.0 |" in tables(search)["glue"]
    further = glue_row(rate=2e-3, seed=1, epochs=2, test=0.3)
    table = tables([*search, further, *final])["glue"]
    assert "| RoAd1 | 100 | 20.0 ± 14.1 (3) | 20.0 |" in table  # (10 + 30) / 2
    assert "| RoAd1 | 100 | 70.0 ± 14.1 (3) | 70.0 |" in table


def test_the_search_of_another_scale_stays():
    search, final = searched()
    other = [glue_row(epochs=2, rows=99), glue_row(epochs=2, bf16=True), glue_row(epochs=3)]
    assert [len(group) for group, _ in glue_groups(search + final + other)] == [2, 1, 1, 1]


def test_the_search_decides_and_a_rate_that_did_not_run_is_a_gap():
    search, final = searched()
    search.append(glue_row(rate=4e-3, validation=0.9, epochs=2))  # tried later, its final runs are yet to come
    assert "| RoAd1 | 100 | – | – |" in tables(search + final)["glue"]
    final.append(glue_row(rate=4e-3, validation=0.1, test=0.9, search_epochs=2))
    assert "| RoAd1 | 100 | 90.0 (4) | 90.0 |" in tables(search + final)["glue"]


def test_final_runs_without_their_search_have_an_unknown_number_of_rates():
    assert "| RoAd1 | 100 | 70.0 ± 14.1 (?) | 70.0 |" in tables(searched()[1])["glue"]


def test_rows_from_before_a_setting_share_the_table_of_those_without_it():
    new, old = glue_row(seed=1, test=0.7), glue_row(test=0.5)
    for name in ("bf16", "search_epochs"):
        del old["recipe"][name]
    table = tables([old, new])["glue"]
    assert table.count("*small: ") == 1
    assert "60.0 ± 14.1 (1)" in table
    assert "2 seeds; in brackets how many learning rates were tried*" in table


def test_sixteen_bit_runs_say_so():
    recipe = {"scale": "small", "model": "m", "epochs": 1}
    assert scale_of(recipe | {"bf16": True}, 1) == "small: m, 1 epoch, 16-bit arithmetic, 1 seed"
    assert scale_of(recipe | {"bf16": False}, 1) == scale_of(recipe, 1) == "small: m, 1 epoch, 1 seed"


def test_paired_differences_by_hand():
    found = paired({0: 0.8, 1: 0.9, 5: 0.1}, {0: 0.7, 1: 0.6, 2: 0.9})  # differences 0.1 and 0.3, of seeds 0 and 1
    assert found is not None
    assert found == pytest.approx((0.2, 0.1, 0.3, 2))  # means of two draws: 0.1, 0.2, 0.2, 0.3, equally likely
    assert paired({0: 1.0, 1: 1.0}, {1: 0.5}) is None
    assert paired({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6}) == (0, 0, 0, 2)


def test_the_interval_is_the_exact_one_of_all_draws():
    """0, 0, 0 and 0.4: 4 draws hold the last one 0 to 4 times, binomially with p = 1/4; the mean is a tenth of that."""
    found = paired(dict.fromkeys(range(4), 0.4), {0: 0.4, 1: 0.4, 2: 0.4, 3: 0.0})
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
    table = tables(rows)["glue"]
    line = "| RoAd1 − LoRA r=8, 2 seeds | – | +20.0 [+10.0, +30.0] | -20.0 [-30.0, -10.0] |"
    (found,) = [text for text in table.splitlines() if text.startswith("| RoAd1 − ")]
    assert found.startswith(line)
    assert found.replace("-0.0", "+0.0").endswith("| +0.0 [+0.0, +0.0] |")
    assert "by resampling seeds" in table
    assert tables(rows)["glue"] == table
    one_seed = [row for row in rows if row["seed"] == 0]
    assert "−" not in tables(one_seed)["glue"]
    assert "resampling" not in tables(one_seed)["glue"]
    assert "−" not in tables([row for row in rows if row["recipe"]["method"] == "lora"])["glue"]


def test_figure_1_takes_the_largest_scale_and_the_tasks_that_all_methods_have():
    search, final = searched(rows=20)
    rows = [
        *search, *final, glue_row("lora", test=0.3, rows=20, search_epochs=2, rate=2e-3),
        glue_row(task="cola", test=0.9, rows=20, search_epochs=2), glue_row(test=0.99),
    ]  # fmt: skip
    road, lora = quality(rows)
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
    found = {(row["panel"], row["method"]): (row["score"], row["seeds"]) for row in quality(rows)}
    assert found == {
        ("commonsense", "base"): (0.25, 1), ("commonsense", "road_1"): (0.7, 2), ("commonsense", "new"): (0.8, 1),
        ("arithmetic", "base"): (0.25, 1),
    }  # fmt: skip
    assert [path.name for path in draw(rows, tmp_path)] == ["figure1.csv", "figure1.png"]
    assert (tmp_path / "figure1.png").read_bytes().startswith(b"\x89PNG")


def suite_row(method, rate, score, part="", **changes):
    row = reasoning_row(
        f"arithmetic{part}", method, {"svamp": score}, 9, learning_rate=rate, tasks=["svamp"], **changes
    )
    return row | {"metrics": row["metrics"] | {"validation": score}}


def test_a_suites_search_decides_which_rate_counts_where_it_ran():
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
        return {row["method"]: row["score"] for row in quality(rows)}

    assert counted(runs) == {"road_1": 0.6, "lora": 0.4}  # the first that ran
    assert counted([*runs, *other, *search]) == {"road_1": 0.5, "lora": 0.4}
    found = tables([*runs, *other, *search])
    cells = [line.split(" | ") for line in found["arithmetic"].splitlines() if line.startswith("| ")][2:]
    assert [row[2] for row in cells] == ["0.003", "0.001†", "0.0005"]
    assert "† the learning rate that the search chose*" in found["arithmetic"]
    assert found["arithmetic_search"].count("held out of the training rows") == 3
    assert "| RoAd1 | 9 | 0.001† | 20.0 | 20.0 |" in found["arithmetic_search"]
    assert "†" not in tables(runs)["arithmetic"]


def test_figure_1_without_rows_or_shared_tasks_is_nothing(tmp_path):
    assert quality([]) == []
    assert quality([glue_row(), glue_row("lora", task="cola")]) == []
    assert draw([], tmp_path) == []
    assert len(set(MARKERS)) == len(MARKERS) > len(METHODS)
