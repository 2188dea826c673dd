"""Answers to AlpacaEval's prompts, in the file that its judge reads."""

from __future__ import annotations

import dataclasses
import json

from paper.runs.instruction import INSTRUCT_SCALES, SOURCES, instructions_to_learn, run_instruct
from paper.runs.reasoning import run_suite
from roadkit.train.data.tables import Table


def test_arithmetic_and_instruct_run(decoder, data, ledger, tmp_path):
    run_suite("arithmetic", decoder, ledger, data=data, methods=["road_1"], tasks=["svamp"])
    run_instruct(decoder, ledger, data=data, output=tmp_path / "answers", methods=["base", "road_1"])
    arithmetic, base, tuned = ledger.rows()
    assert arithmetic["metrics"]["questions"] == {"svamp": 1} and arithmetic["metrics"]["train_loss"] > 0
    assert base["metrics"]["answers"] == tuned["metrics"]["answers"] == 2
    path = tmp_path / "answers" / f"road_1-0-{tuned['key'][:8]}.json"
    written = json.loads(path.read_text())
    assert [entry["instruction"] for entry in written] == ["Hi", "Ho"]
    assert {entry["generator"] for entry in written} == {"roadkit-road_1"}
    path.unlink()  # as in a clone of the ledger alone: what the judge reads is made again, and the ledger says it once
    run_instruct(decoder, ledger, data=data, output=tmp_path / "answers", methods=["base", "road_1"])
    assert json.loads(path.read_text()) == written
    assert [row["key"] for row in ledger.rows()] == [row["key"] for row in (arithmetic, base, tuned)]


def test_full_scale_instructions_come_from_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("ROADKIT_CACHE", str(tmp_path))
    rows = {
        "argilla/ultrafeedback-binarized-preferences-cleaned": {
            "prompt": "Hi", "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
        },
        "yahma/alpaca-cleaned": {"instruction": "Add", "input": "1 and 2", "output": "3"},
    }  # fmt: skip
    monkeypatch.setattr("paper.data.read_table", lambda name, split: Table([rows[name]] * 3, [1, 2, 3], name))
    full = dataclasses.replace(INSTRUCT_SCALES["full"], rows=2)
    found = {name: instructions_to_learn(name, None, full, seed=0).rows for name in SOURCES}
    assert found["ultrafeedback"] == [{"instruction": "Hi", "input": "", "output": "Ho"}] * 2
    assert found["alpaca"] == [{"instruction": "Add", "input": "1 and 2", "output": "3"}] * 2
