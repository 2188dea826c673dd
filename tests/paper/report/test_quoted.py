"""The quoted numbers: complete, adding up to the averages the paper prints, and never taken for ours."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from paper.report.quoted import ABSENT, AS_LARGE, RERUN, quoted_average, quoted_experiments, quoted_table
from paper.runs.multimodal import MULTIMODAL_METHODS, PretrainedLlava
from paper.tuning.decoders import DECODER_LABELS
from paper.tuning.methods import METHODS, PAPER_SIZED

TABLES = json.loads(files("paper").joinpath("report/quoted.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("experiment", quoted_experiments())
def test_averages_are_the_means_of_their_rows(experiment):
    for row in TABLES[experiment]["rows"]:
        assert len(row["scores"]) == len(TABLES[experiment]["columns"])
        if row["average"] is not None:
            mean = sum(row["scores"]) / len(row["scores"])
            assert mean == pytest.approx(row["average"], abs=0.06)  # printed with one decimal


def test_names_lead_to_methods_that_their_experiments_have():
    generative = {*METHODS, *DECODER_LABELS}
    have = {"glue": {*METHODS}, "multimodal": {*MULTIMODAL_METHODS}, "efficiency": {*METHODS}}
    for experiment in quoted_experiments():
        named = {RERUN.get(row["method"]) for row in TABLES[experiment]["rows"]} - {None}
        offered = {name for name in named if (experiment, name) not in ABSENT}
        assert offered <= have.get(experiment, generative), experiment
        assert {*AS_LARGE.get(experiment, {}).values()} <= {*PAPER_SIZED, *PretrainedLlava.methods}


def test_rows_that_nobody_reran_say_so():
    lines = quoted_table("glue")
    assert lines[0] == "*quoted from arXiv 2409.00119v2, table 2*"
    assert next(line for line in lines if "| RED |" in line).endswith("| quoted, not rerun |")
    assert next(line for line in lines if "| RoAd1 |" in line).endswith("| 85.6 | `road_1` |")
    assert next(line for line in lines if "| LoReFT |" in line).endswith("| quoted, not rerun |")
    assert next(line for line in lines if "| LoRA |" in line).endswith("| `lora_qv` |")  # 0.24 % of RoBERTa-base


def test_averages_by_our_names():
    assert quoted_average("glue", "road_1") == ("RoBERTa-base", 85.6)
    assert quoted_average("commonsense", "lora") == ("LLaMA-7B", 74.7)
    assert quoted_average("glue", "head") is None
    assert quoted_average("pilot1", "road_1") is None
