"""Which layers are rotated, which modules are trained whole, and what is refused."""

from __future__ import annotations

import pytest

from roadkit.errors import RecipeError
from roadkit.train.model.targets import head_names, target_layers


def test_all_linear_leaves_the_output_head_out(make_recipe, tiny_llama):
    layers = target_layers(tiny_llama(), make_recipe())
    assert len(layers) == 14
    assert not any("lm_head" in name for name in layers)


def test_targets_match_whole_names_or_endings(make_recipe, tiny_llama):
    model = tiny_llama()
    assert len(target_layers(model, make_recipe(target_modules=("q_proj",)))) == 2
    one = "model.layers.1.mlp.up_proj"
    assert list(target_layers(model, make_recipe(target_modules=(one,)))) == [one]


def test_unmatched_targets_list_the_candidates(make_recipe, tiny_llama):
    with pytest.raises(
        RecipeError, match=r"query_proj match.* no linear layer.*candidates: down_proj, gate_proj, k_proj"
    ):
        target_layers(tiny_llama(), make_recipe(target_modules=("query_proj", "q_proj")))


def test_group_size_that_misses_names_one_that_fits(make_recipe, tiny_llama):
    with pytest.raises(
        RecipeError, match=r"group_size 64 does not divide .*k_proj's width 32.*group_size: 32 fits all 14"
    ):
        target_layers(tiny_llama(), make_recipe(group_size=64))


def test_classifier_head_is_found(make_recipe, tiny_bert):
    recipe = make_recipe(task="classification")
    model = tiny_bert(num_labels=2)
    assert head_names(model, recipe) == ["classifier"]
    assert "classifier" not in target_layers(model, recipe)


def test_named_modules_are_saved_whole(make_recipe, tiny_llama):
    model = tiny_llama()
    assert head_names(model, make_recipe(modules_to_save=("norm",))) == ["model.norm"]
    with pytest.raises(RecipeError, match="the model has no module 'nrom'; did you mean 'norm'"):
        head_names(model, make_recipe(modules_to_save=("nrom",)))
