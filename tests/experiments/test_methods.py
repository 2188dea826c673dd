"""Each method trains what it says, and nothing else; the best epoch comes back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from roadkit.errors import RecipeError
from roadkit.experiments.fit import KeepBest
from roadkit.experiments.methods import FAMILIES, METHODS, RECIPES, find, num_trainable
from roadkit.modules import linear_layers
from roadkit.train.recipe import Recipe
from roadkit.train.tuned import head_names

WITHOUT_PEFT = [name for name in METHODS if name != "boft"]  # PEFT's BOFT warns where there is no CUDA compiler
LAYERS = 2 * (4 * 64 + 128 + 64) + 64  # widths of the tiny BERT's linear layers, its pooler's included


def tuned(tiny_bert, name):
    model = tiny_bert(num_labels=2)
    recipe = Recipe(model="x", data="x", output="x", task="classification", group_size=16)
    heads = head_names(model, recipe)
    return find(name).tune(model, recipe), heads


@pytest.mark.parametrize("name", WITHOUT_PEFT)
def test_every_method_gives_its_parameters_and_the_head_a_gradient(tiny_bert, name):
    model, heads = tuned(tiny_bert, name)
    ids = torch.randint(5, 200, (2, 6))
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([0, 1])).loss.backward()
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("classifier" in key for key in trained)
    assert {key for key, parameter in model.named_parameters() if parameter.grad is not None} <= trained


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("road_1", LAYERS),
        ("road_2", 2 * LAYERS),
        ("road_4", 4 * LAYERS),
        ("road_1_fc1", 2 * 128),
        ("head", 0),
        ("road_2_attention", 2 * 2 * 4 * 64),
        ("road_1_other_pairs", LAYERS),
    ],
)
def test_trainable_parameters_without_the_head(tiny_bert, name, count):
    assert num_trainable(*tuned(tiny_bert, name)) == count


def test_bitfit_trains_biases_alone(tiny_bert):
    model, _ = tuned(tiny_bert, "bitfit")
    trained = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(key.endswith("bias") or key.startswith("classifier") for key in trained)
    assert len(trained) > 10


def test_ia3_scales_every_layer_of_a_decoder_and_three_of_an_encoder(tiny_bert, tiny_llama):
    assert num_trainable(*tuned(tiny_bert, "ia3")) == 2 * (2 * 64 + 128)  # keys, values, an inner width
    model = tiny_llama()
    layers = dict(linear_layers(model))
    inputs = {name: layer.in_features for name, layer in layers.items() if name.endswith("down_proj")}
    outputs = [layer.out_features for name, layer in layers.items() if name not in inputs and name != "lm_head"]
    recipe = Recipe(model="x", data="x", output="x", group_size=16)
    assert num_trainable(find("ia3").tune(model, recipe)) == sum(inputs.values()) + sum(outputs)


def test_a_recipe_pairs_other_channels_than_the_one_it_is_compared_with(tiny_bert):
    for usual, other in ((64, 2), (2, 64)):
        recipe = Recipe(model="x", data="x", output="x", task="classification", group_size=usual)
        model = find("road_1_other_pairs").tune(tiny_bert(num_labels=2), recipe)
        assert model.peft_config["default"].group_size == other


def test_equal_numbers_of_learning_rates_and_the_nearest_name():
    assert {len(method.rates) for method in (METHODS | RECIPES).values()} == {4}
    assert len({len(names) for names in FAMILIES.values()}) == 1
    with pytest.raises(RecipeError, match="did you mean 'road_1'"):
        find("road1")


def test_the_best_epoch_comes_back():
    model, keep = nn.Linear(2, 1), KeepBest("accuracy")

    def epoch(value: float, accuracy: float) -> None:
        with torch.no_grad():
            model.weight.fill_(value)
        keep.on_evaluate(SimpleNamespace(), SimpleNamespace(), None, metrics={"eval_accuracy": accuracy}, model=model)

    for value, accuracy in ((1.0, 0.5), (2.0, 0.8), (3.0, 0.8), (4.0, 0.6)):
        epoch(value, accuracy)
    keep.restore(model)
    assert model.weight.tolist() == [[2.0, 2.0]]
    assert keep.best == {"accuracy": 0.8}
    with pytest.raises(RecipeError, match="no metric 'pearson'"):
        KeepBest("pearson").on_evaluate(
            SimpleNamespace(), SimpleNamespace(), None, metrics={"eval_loss": 1.0}, model=model
        )


def test_the_smallest_loss_is_the_best():
    model, keep = nn.Linear(2, 1), KeepBest("loss")
    for loss in (2.0, 1.0, 3.0):
        keep.on_evaluate(SimpleNamespace(), SimpleNamespace(), None, metrics={"eval_loss": loss}, model=model)
    assert keep.best == {"loss": 1.0}
