"""The merging study on a tiny encoder."""

from __future__ import annotations

import gzip
import json

import pytest

from paper.report.study_folder import write_study
from paper.runs.merging import MergingSettings, run_merging, survival
from roadkit.errors import RecipeError


def test_survival_is_the_share_of_the_gain_that_is_kept():
    accuracy = {"base": {"a": 0.5, "b": 0.2}, "own": {"a": 0.9, "b": 0.6}, "half": {"a": 0.7, "b": 0.4}}
    assert survival(accuracy, "half") == pytest.approx(0.5)
    assert survival(accuracy, "own") == pytest.approx(1)
    assert survival(accuracy, "base") == 0


def test_both_kinds_are_merged_once_and_reported(tmp_path, tiny_bert, tiny_tokenizer, placed):
    model = tmp_path / "model"
    tiny_bert(vocab_size=384, num_attention_heads=2).save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    rows = [
        {"text": f"{word} {i}", "label": 0, "label_name": label, "domain": domain}
        for domain, labels in {"one": ("fox", "dog"), "two": ("batch", "angle")}.items()
        for label in labels
        for word in (label, f"the {label}")
        for i in range(3)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "classify").mkdir()
    with gzip.open(tmp_path / "classify" / "clinc150_train.jsonl.gz", "wt") as file:
        file.write(text)
    (tmp_path / "classify" / "clinc150_test.jsonl").write_text(text)
    settings = MergingSettings(
        model=str(model), domains=("one", "two"), rows=8, held_out=6, epochs=2, batch_size=4, rank=2
    )
    ledger = run_merging(settings, tmp_path / "out", data=tmp_path)
    road, lora = (row["metrics"]["accuracy"] for row in ledger.rows())
    assert set(placed) == {"cpu:0"}, "models go to the best device"
    assert road["base"] == lora["base"]
    assert {"product", "geometric mean"} <= set(road)
    assert {"TIES, density 0.5", "DARE linear, density 0.5"} <= set(lora)
    assert all(0 <= share <= 1 for ways in (road, lora) for tasks in ways.values() for share in tasks.values())
    before = ledger.path.read_bytes()
    assert run_merging(settings, tmp_path / "out", data=tmp_path).path.read_bytes() == before
    report, table = write_study(ledger)
    assert "| geometric mean |" in report.read_text()
    assert len(table.read_text().splitlines()) == 1 + 2 * (len(road) + len(lora))
    with pytest.raises(RecipeError, match="no domain 'three' in clinc150; there are one, two"):
        run_merging(MergingSettings(model=str(model), domains=("three",)), tmp_path / "out", data=tmp_path)
