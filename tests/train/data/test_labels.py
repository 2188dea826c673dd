"""Classification and regression: classes, scores, heads, and rows whose label cannot be right."""

from __future__ import annotations

import json

import pytest
import torch

import roadkit as rk
from roadkit import models
from roadkit.errors import RecipeError
from roadkit.train import Recipe, run
from roadkit.train.data.labels import find_classes, read_label
from roadkit.train.data.tables import read_table

ROWS = [
    {"sentence1": "good " * (i % 3 + 1), "sentence2": "fine" if i % 2 else "bad", "label": i % 2} for i in range(12)
]


@pytest.fixture
def label_recipe(bert_folder, write_rows, tmp_path):
    def make(rows=ROWS, **changes):
        values = {
            "model": bert_folder,
            "data": write_rows(rows),
            "output": str(tmp_path / "adapter"),
            "task": "classification",
            "group_size": 16,
            "batch_size": 4,
            "max_steps": 4,
            "learning_rate": 2e-2,
        }
        return Recipe(**values | changes)

    return make


def test_classification_trains_rotations_and_head(label_recipe, bert_folder, write_rows):
    seen = write_rows(ROWS, "seen.jsonl")
    result = run(label_recipe(max_steps=50, learning_rate=5e-2, eval_data=seen))
    assert result.metrics["eval_accuracy"] == result.metrics["eval_f1"] == result.metrics["eval_matthews"] == 1
    adapter = rk.Adapter.load(result.adapter)
    assert adapter.heads["classifier"]["weight"].shape == (2, 64)
    model, tokenizer = models.load_encoder(bert_folder, num_labels=2), models.load_tokenizer(bert_folder)
    pairs = [[row[name] for row in ROWS] for name in ("sentence1", "sentence2")]
    batch = tokenizer(pairs[0], pairs[1], padding=True, return_tensors="pt")
    with torch.no_grad(), rk.attached(model, adapter):
        assert model(**batch).logits.argmax(-1).tolist() == [row["label"] for row in ROWS]


def test_head_is_the_same_for_the_same_seed(label_recipe, tmp_path):
    paths = [run(label_recipe(output=str(tmp_path / name))).adapter for name in ("a", "b")]
    assert rk.Adapter.load(paths[0]) == rk.Adapter.load(paths[1])


def test_regression_reports_correlations(label_recipe):
    rows = [{"sentence1": "a" * i, "label": i / 4} for i in range(1, 12)]
    result = run(label_recipe(rows, task="regression", eval_fraction=0.4, best="pearson", eval_steps=2))
    assert {"eval_pearson", "eval_spearman"} <= result.metrics.keys()
    assert rk.Adapter.load(result.adapter).heads["classifier"]["weight"].shape == (1, 64)
    assert result.classes is None


def test_decoder_classifies_too(label_recipe, llama_folder):
    result = run(label_recipe(model=llama_folder))
    assert rk.Adapter.load(result.adapter).heads["score"]["weight"].shape == (2, 64)


def test_text_labels_become_classes_in_order(label_recipe):
    rows = [{"text": row["sentence2"], "label": ("yes", "no")[row["label"]]} for row in ROWS]
    result = run(label_recipe(rows, max_steps=1))
    assert result.classes == ["no", "yes"]
    assert json.loads((result.adapter / "training.json").read_text())["classes"] == ["no", "yes"]
    assert "Classes, in the order of the outputs: no, yes." in (result.adapter / "README.md").read_text()


def test_loaded_classifier_needs_as_many_outputs(label_recipe, bert_folder):
    model, tokenizer = models.load_encoder(bert_folder, num_labels=3), models.load_tokenizer(bert_folder)
    with pytest.raises(RecipeError, match="the model has 3 outputs, the data 2 classes"):
        run(label_recipe(), model=model, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("label", "changes", "message"),
    [
        (2, {"num_labels": 2}, r"rows\.jsonl, row 3, column 'label': label 2 is outside 0 to 1"),
        (-1, {}, "label -1 is outside 0 to 1"),
        (0.5, {}, r"0\.5 is no label"),
        ("yse", {"labels": ("no", "yes")}, "'yse' is none of no, yes; did you mean 'yes'"),
        (5000, {}, "label 5000 would mean 5001 classes"),
        (None, {}, "None is no label"),
        ("high", {"task": "regression"}, "'high' is no finite number"),
        (float("nan"), {"task": "regression"}, "nan is no finite number"),
    ],
)
def test_impossible_labels_are_named(label_recipe, label, changes, message):
    rows = [{"text": "x", "label": i} for i in (0, 1)] + [{"text": "y", "label": label}]
    with pytest.raises(RecipeError, match=message):
        run(label_recipe(rows, **changes))


def test_missing_column_is_named_with_row_and_columns(label_recipe):
    rows = [{"text": "x", "label": 0}, {"text": "x", "lable": 1}]
    with pytest.raises(RecipeError, match=r"row 2: no column 'label'; did you mean 'lable'\? \(it has text, lable\)"):
        run(label_recipe(rows))


def test_numbers_in_csv_are_labels(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,0\nb,2\n")
    table = read_table(str(path))
    recipe = Recipe(model="m", data="d", output="o", task="classification")
    classes = find_classes(table, "label", recipe)
    assert classes == 3
    assert read_label(table[1], "label", classes) == 2
