"""Tables and figures come from the ledger, and the committed page agrees with the committed ledger."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from paper.ledger import Ledger
from paper.report.figures import draw
from paper.report.markdown import spread
from paper.report.results import filled, write
from paper.report.scores import scale_of
from paper.report.tables import tables
from roadkit.errors import RecipeError

DOCS = Path(__file__).resolve().parents[3] / "docs"


def add(ledger, method, rate, seed, validation, test, **changes):
    recipe = {
        "experiment": "glue", "scale": "small", "model": "minilm", "rows": 10, "test": 20, "epochs": 1, "task": "rte",
        "method": method, "learning_rate": rate,
    }  # fmt: skip
    metrics = {"metric": "accuracy", "validation": validation, "test": test, "trainable": 1234}
    ledger.append(recipe | changes, seed=seed, metrics=metrics, seconds=1.0)


def test_the_rate_chosen_on_validation_is_shown_not_the_best_on_test(ledger):
    add(ledger, "road_1", 1e-3, 0, validation=0.7, test=0.5)
    add(ledger, "road_1", 3e-3, 0, validation=0.6, test=0.9)
    add(ledger, "road_1", 1e-3, 1, validation=0.1, test=0.7)
    table = tables(ledger.rows())["glue"]
    assert "| RoAd1 | 1,234 | 60.0 ± 14.1 (2) | 60.0 |" in table
    assert "small: minilm, 10 training rows, 1 epoch, up to 20 test rows, 2 seeds" in table


def test_scales_never_share_a_table_and_gaps_have_no_mean(ledger):
    add(ledger, "road_1", 1e-3, 0, 0.7, 0.5)
    add(ledger, "road_1", 1e-3, 0, 0.7, 0.6, task="cola")
    add(ledger, "lora", 1e-3, 0, 0.7, 0.6)
    add(ledger, "lora", 1e-3, 0, 0.7, 0.9, rows=99)
    table = tables(ledger.rows())["glue"]
    assert table.count("*small: ") == 2
    assert "| LoRA r=8 | 1,234 | 60.0 (1) | – | – |" in table
    assert "| RoAd1 | 1,234 | 50.0 (1) | 60.0 (1) | 55.0 |" in table


def test_an_experiment_without_runs_says_so():
    found = tables([])
    assert {text for name, text in found.items() if not name.startswith("paper_")} == {"No finished run yet."}
    assert all("quoted from arXiv" in text for name, text in found.items() if name.startswith("paper_"))


def test_spread_and_scale_in_words():
    assert spread([0.5]) == "50.0"
    assert spread([0.4, 0.6]) == "50.0 ± 14.1"
    assert scale_of({"scale": "full", "model": "m", "epochs": 2, "questions": 3}, 1) == (
        "full: m, 2 epochs, 3 questions a task, 1 seed"
    )


def test_only_marked_tables_are_replaced(tmp_path):
    page = "before\n<!-- table: glue -->\nold\n<!-- end -->\nafter\n"
    assert filled(page, {"glue": "new"}, origin=tmp_path) == "before\n<!-- table: glue -->\nnew\n<!-- end -->\nafter\n"
    with pytest.raises(RecipeError, match="no experiment 'gleu'; there are glue"):
        filled(page.replace("glue", "gleu"), {"glue": "new"}, origin=tmp_path)


def test_the_figure_and_its_data_are_written(ledger, tmp_path):
    add(ledger, "road_1", 1e-3, 0, 0.7, 0.5)
    assert [path.name for path in draw(ledger.rows(), tmp_path)] == [
        "glue.csv",
        "glue.png",
        "figure1.csv",
        "figure1.png",
    ]
    with open(tmp_path / "glue.csv") as file:
        (row,) = csv.DictReader(file)
    assert row["method"] == "RoAd1"
    assert float(row["test"]) == 0.5
    assert (tmp_path / "glue.png").read_bytes().startswith(b"\x89PNG")


def test_figure_4_is_drawn_from_its_benchmark(tmp_path):
    from paper.report.figures import draw

    rates = {"median": 2.0, "min": 1.0, "max": 3.0, "values": [1.0, 2.0, 3.0]}
    panels = {
        "left": {"merged": rates, "lora rank 4": rates},
        "middle": {"peft lora, 32 tokens": rates},
        "right": {"vllm lora, 64 requests": rates},
    }
    machine = {"cpus": 2, "architecture": "x86_64", "accelerator": None}
    recipe = {"experiment": "efficiency", "bench": "figure4"}
    row = {"recipe": recipe, "seed": 0, "machine": machine, "metrics": {"tokens_per_second": panels}}
    assert [path.name for path in draw([row], tmp_path)] == ["figure4.csv", "figure4.png"]
    _, *lines = (tmp_path / "figure4.csv").read_text().splitlines()
    ends = [line.split("no GPU")[1].lstrip('"') for line in lines]
    places = [",rank,merged,", ",rank,lora,4", ",tokens,peft lora,32", ",requests,vllm lora,64"]
    assert ends == [f"{place},2.0,1.0,3.0" for place in places]


def test_the_committed_page_and_figures_agree_with_the_committed_ledger(tmp_path):
    ledger = Ledger(DOCS / "data" / "experiments.jsonl")
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    (tmp_path / "results.md").write_text(page, encoding="utf-8")
    written = write(ledger, tmp_path)
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == page
    assert len(ledger.rows()) == ledger.path.read_bytes().count(b"\n"), "a run stands there twice"
    for path in written:
        if path.suffix == ".csv":
            assert path.read_text() == (DOCS / "figures" / path.name).read_text()


def test_a_missing_page_is_named(ledger, tmp_path):
    add(ledger, "road_1", 1e-3, 0, 0.7, 0.5)
    with pytest.raises(RecipeError, match=r"results\.md is missing"):
        write(ledger, tmp_path)
