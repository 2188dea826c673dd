"""Figures are drawn from the ledger, each with its data beside it."""

from __future__ import annotations

import csv

from paper.report.figures import draw_figures
from tests.paper.report.conftest import append_run


def test_the_figure_and_its_data_are_written(ledger, tmp_path):
    append_run(ledger, "road_1", 1e-3, 0, 0.7, 0.5)
    assert [path.name for path in draw_figures(ledger.rows(), tmp_path)] == [
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
    rates = {"median": 2.0, "min": 1.0, "max": 3.0, "values": [1.0, 2.0, 3.0]}
    panels = {
        "left": {"merged": rates, "lora rank 4": rates},
        "middle": {"peft lora, 32 tokens": rates},
        "right": {"vllm lora, 64 requests": rates},
    }
    machine = {"cpus": 2, "architecture": "x86_64", "accelerator": None}
    setup = {"experiment": "efficiency", "bench": "figure4"}
    row = {"recipe": setup, "seed": 0, "machine": machine, "metrics": {"tokens_per_second": panels}}
    assert [path.name for path in draw_figures([row], tmp_path)] == ["figure4.csv", "figure4.png"]
    _, *lines = (tmp_path / "figure4.csv").read_text().splitlines()
    ends = [line.split("no GPU")[1].lstrip('"') for line in lines]
    places = [",rank,merged,", ",rank,lora,4", ",tokens,peft lora,32", ",requests,vllm lora,64"]
    assert ends == [f"{place},2.0,1.0,3.0" for place in places]
