"""Recipes: what is read, what is refused, and that all problems come at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from roadkit.errors import RecipeError
from roadkit.train import Recipe, load_recipe
from roadkit.train.recipe import LoraOptions, dump_recipe

NEEDED = {"model": "smollm2", "data": "rows.jsonl", "output": "adapters/x"}


@pytest.fixture
def write(tmp_path):
    def make(text: str):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return make


def test_defaults_are_those_of_the_paper():
    recipe = Recipe(**NEEDED)
    assert (recipe.variant, recipe.group_size, recipe.target_modules) == ("road_1", 64, "all-linear")
    assert (recipe.learning_rate, recipe.schedule, recipe.warmup, recipe.weight_decay) == (5e-3, "linear", 0.1, 0)


def test_all_problems_come_in_one_error():
    with pytest.raises(RecipeError) as error:
        Recipe(model="smollm2", lerning_rate=1, batch_size=0, lora={"rank": 8}, variant="road_3")
    text = str(error.value)
    assert "unknown key 'lerning_rate'; did you mean 'learning_rate'?" in text
    assert "batch_size: input should be greater than or equal to 1, got '0'" in text
    assert "unknown key 'lora.rank'" in text
    assert "variant: input should be 'road_1', 'road_2' or 'road_4'" in text
    assert "data is missing" in text
    assert "output is missing" in text


def test_recipe_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Recipe(**NEEDED).seed = 1  # type: ignore[misc]


def test_yaml_and_overrides(write):
    path = write("model: smollm2\ndata: d.jsonl\noutput: o\nlearning_rate: 1e-3\nlora: {r: 4}\n")
    recipe = load_recipe(
        path, ["learning_rate=3e-3", "lora.alpha=32", "max_steps=10", "target_modules=[q_proj, v_proj]"]
    )
    assert recipe.learning_rate == 3e-3
    assert recipe.lora == LoraOptions(r=4, alpha=32)
    assert recipe.max_steps == 10
    assert recipe.target_modules == ("q_proj", "v_proj")
    assert load_recipe(path, ["lora=null"]).lora is None
    assert load_recipe(path, ["target_modules=q_proj"]).target_modules == ("q_proj",)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("", [], "holds nothing, not a mapping"),
        ("- a\n", [], "holds a list"),
        ("model: [\n", [], "cannot be read"),
        ("model: a\nmodel: b\n", [], "the key 'model' is written twice"),
        ("model: a\n", ["seed"], "'seed' is no override: write key=value"),
        ("model: a\n", ["model.x=1"], "model is 'a', it has no keys of its own"),
        ("model: a\ndata: b\noutput: c\n", ["sede=1"], "unknown key 'sede'; did you mean 'seed'"),
        ("model: a\n", ["seed=["], "the value cannot be read"),
    ],
)
def test_unreadable_recipes_are_refused(write, text, overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(text), overrides)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")


def test_data_is_looked_for_beside_the_recipe(write, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    recipe = load_recipe(write("model: a\ndata: rows.jsonl\noutput: o\n"))
    assert recipe.data == str(tmp_path / "rows.jsonl")
    assert recipe.output == "o"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_data": "a", "eval_fraction": 0.1}, "two sources of held-out rows"),
        ({"eval_steps": 5}, "eval_steps needs eval_data or eval_fraction"),
        ({"best": "loss", "eval_fraction": 0.1}, "best needs eval_steps"),
        ({"best": "loss", "eval_fraction": 0.1, "eval_steps": 4, "save_steps": 6}, "save_steps 6 must be a multiple"),
        (
            {"best": "accuracy", "eval_fraction": 0.1, "eval_steps": 4},
            "accuracy does not exist for causal; use one of loss",
        ),
        ({"packing": True}, "packing needs max_length"),
        ({"packing": True, "max_length": 64, "group_by_length": True}, "group_by_length has nothing to do"),
        ({"packing": True, "max_length": 64, "task": "regression"}, "it needs task causal"),
        ({"format": "sentences"}, "it needs task classification or regression"),
        ({"format": "alpaca", "task": "regression"}, "format alpaca has no label"),
        ({"labels": ["a", "b"]}, "belong to task classification"),
        ({"labels": ["a", "b"], "num_labels": 3, "task": "classification"}, "num_labels is 3, but 2 labels are named"),
        ({"target_modules": []}, "target_modules is empty"),
        ({"warmup": 1.5}, "warmup 1.5 is neither"),
        ({"learning_rate": float("inf")}, "learning_rate: input should be a finite number"),
    ],
)
def test_contradictions_are_explained(changes, message):
    with pytest.raises(RecipeError, match=message):
        Recipe(**NEEDED, **changes)


def test_dump_is_read_back(write):
    recipe = Recipe(**NEEDED, lora={"r": 4}, target_modules=["q_proj"], columns={"prompt": "question"})
    assert load_recipe(write(dump_recipe(recipe))) == recipe


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_recipes_are_valid(path):
    recipe = load_recipe(path)
    assert recipe.has_eval
    if recipe.task == "causal":
        assert Path(recipe.data).is_file()
