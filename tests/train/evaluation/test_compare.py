"""`roadkit eval`: base, tuned and merged on held-out rows."""

from __future__ import annotations

import math

import pytest
import torch

from roadkit import models
from roadkit.errors import AdapterError, ModelError, RecipeError
from roadkit.train import Recipe, compare, run


@pytest.mark.parametrize("changes", [{}, {"lora": {"r": 2}}, {"variant": "road_4"}], ids=["road", "pair", "road_4"])
def test_tuned_and_merged_agree_and_beat_the_base(make_recipe, changes):
    recipe = make_recipe(max_steps=12, eval_fraction=0.25, **changes)
    result = run(recipe)
    found = compare(recipe)
    assert found.rows.keys() == {"base", "tuned", "merged"}
    assert found.rows["tuned"]["loss"] < found.rows["base"]["loss"]
    assert found.rows["merged"]["loss"] == pytest.approx(found.rows["tuned"]["loss"], rel=1e-4)
    assert found.rows["tuned"]["loss"] == pytest.approx(result.metrics["eval_loss"], rel=1e-4)
    assert found.rows["tuned"]["perplexity"] == pytest.approx(math.exp(found.rows["tuned"]["loss"]))


def test_loaded_model_is_left_as_it_was(make_recipe, llama_folder):
    recipe = make_recipe(eval_fraction=0.25, lora={"r": 2})
    run(recipe)
    model, tokenizer = models.load_causal(llama_folder), models.load_tokenizer(llama_folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = list(model.named_modules())
    compare(recipe, model=model, tokenizer=tokenizer)
    assert list(model.named_modules()) == modules
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_base_that_cannot_be_merged_into_is_still_compared(make_recipe, monkeypatch, caplog):
    recipe = make_recipe(max_steps=2, eval_fraction=0.25)
    run(recipe)

    def refuse(model, adapter, **options):
        raise ModelError("this base is quantised")

    monkeypatch.setattr("roadkit.train.evaluation.compare.merge", refuse)
    assert compare(recipe).rows.keys() == {"base", "tuned"}
    assert "no row 'merged': this base is quantised" in caplog.text


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_labels_are_compared_with_the_tasks_own_figures(bert_folder, write_rows, tmp_path, task):
    rows = [{"text": ("good", "bad")[i % 2] * (i + 1), "label": i % 2} for i in range(16)]
    recipe = Recipe(
        model=bert_folder, data=write_rows(rows), output=str(tmp_path / "a"), task=task, group_size=16, max_steps=3,
        eval_fraction=0.4,
    )  # fmt: skip
    result = run(recipe)
    found = compare(recipe)
    expected = {"loss", "accuracy", "f1", "matthews"} if task == "classification" else {"loss", "pearson", "spearman"}
    assert found.rows["tuned"].keys() == expected
    for metric in expected:
        assert found.rows["tuned"][metric] == pytest.approx(result.metrics[f"eval_{metric}"], abs=1e-4)


def test_other_classes_are_refused(bert_folder, write_rows, tmp_path):
    rows = [{"text": "x" * (i + 1), "label": ("no", "yes")[i % 2]} for i in range(8)]
    values = {"model": bert_folder, "output": str(tmp_path / "a"), "task": "classification", "group_size": 16}
    recipe = Recipe(data=write_rows(rows), max_steps=1, eval_fraction=0.25, **values)
    run(recipe)
    with pytest.raises(RecipeError, match="was trained for the classes"):
        compare(Recipe(**recipe.model_dump() | {"labels": ["yes", "no"]}))


def test_comparison_needs_held_out_rows_and_an_adapter(make_recipe):
    with pytest.raises(RecipeError, match="needs eval_data or eval_fraction"):
        compare(make_recipe())
    with pytest.raises(AdapterError, match="no such directory"):
        compare(make_recipe(eval_fraction=0.25))
