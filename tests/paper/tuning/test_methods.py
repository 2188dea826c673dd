"""Each method trains what it says, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from paper.tuning.encoders import with_pooler
from paper.tuning.methods import ALL_METHODS, FAMILIES, METHODS, find_method, num_trainable
from roadkit.errors import RecipeError
from roadkit.modules import linear_layers
from roadkit.train.model.targets import head_names
from roadkit.train.recipe import Recipe

OF_ENCODERS = [
    pytest.param(
        name, marks=pytest.mark.filterwarnings("ignore") if name == "boft" else ()
    )  # it misses a CUDA compiler
    for name in (*METHODS, "lora_qv")
]


LAYERS = 2 * (4 * 64 + 128 + 64) + 64  # widths of the tiny BERT's linear layers, its pooler's included


def tuned(tiny_bert, name):
    model = tiny_bert(num_labels=2)
    recipe = Recipe(model="x", data="x", output="x", task="classification", group_size=16)
    heads = head_names(model, recipe)
    return find_method(name).tune(model, recipe), heads


@pytest.mark.parametrize("name", OF_ENCODERS)
def test_every_method_gives_its_parameters_and_the_head_a_gradient(tiny_bert, name):
    model, heads = tuned(tiny_bert, name)
    ids = torch.randint(5, 200, (2, 6))
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([0, 1])).loss.backward()
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("classifier" in key for key in trained)
    with_gradient = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == trained


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
        ("lora_qv", 2 * 2 * 8 * (64 + 64)),
        ("prefix", 20 * 2 * 2 * 64),
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
    layers: dict[str, Any] = dict(linear_layers(model))
    inputs = [layer.weight.shape[1] for name, layer in layers.items() if name.endswith("down_proj")]
    outputs = [layer.weight.shape[0] for name, layer in layers.items() if not name.endswith(("down_proj", "lm_head"))]
    recipe = Recipe(model="x", data="x", output="x", group_size=16)
    assert num_trainable(find_method("ia3").tune(model, recipe)) == sum(inputs) + sum(outputs)


@pytest.mark.parametrize(
    ("name", "config", "percent"),
    [
        ("lora_32", LlamaConfig(), 0.83),  # tables 3 and 4, LLaMA-7B
        ("dora_32", LlamaConfig(), 0.84),
        ("road_1", LlamaConfig(), 0.02),
        ("road_2", LlamaConfig(), 0.04),
        ("lora_qv", RobertaConfig(vocab_size=50265, max_position_embeddings=514), 0.24),  # table 2, RoBERTa-base
        ("ia3", LlamaConfig(), 0.02),
    ],
)
def test_trainable_shares_are_the_papers(name, config, percent):
    with torch.device("meta"):
        causal = isinstance(config, LlamaConfig)
        model = LlamaForCausalLM(config) if causal else RobertaForSequenceClassification(config)
        total = sum(parameter.numel() for parameter in model.parameters())
        recipe = Recipe(model="x", data="x", output="x", task="causal" if causal else "classification", group_size=2)
        heads = head_names(model, recipe)
        share = 100 * num_trainable(find_method(name).tune(model, recipe), heads) / total
    assert share == pytest.approx(percent, abs=0.011)


def test_roads_recipes_train_at_most_a_fifteenth_of_loras():
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )  # minilm's
    with torch.device("meta"):
        counts = {}
        for name in (*FAMILIES["RoAd"], "lora"):
            model = BertForSequenceClassification(config)
            recipe = Recipe(model="x", data="x", output="x", task="classification", group_size=64)
            recipe = Recipe(**recipe.model_dump() | {"modules_to_save": with_pooler(model, recipe)})
            counts[name] = num_trainable(find_method(name).tune(model, recipe), head_names(model, recipe))
    assert counts["road_1"] == 20_736 and counts["lora"] == 331_776
    assert all(15 * counts[name] <= counts["lora"] for name in FAMILIES["RoAd"])


def test_a_model_without_what_a_method_trains_is_named(tiny_llama, tiny_bert):
    recipe = Recipe(model="x", data="x", output="x", group_size=16)
    for name in ("bitfit", "head"):
        with pytest.raises(RecipeError, match="LlamaForCausalLM has nothing that this method trains"):
            find_method(name).tune(tiny_llama(), recipe)
    with pytest.raises(RecipeError, match="BertForSequenceClassification has no layer called q_proj"):
        tuned(tiny_bert, "lora_32")


def test_a_recipe_pairs_other_channels_than_the_one_it_is_compared_with(tiny_bert):
    for usual, other in ((64, 2), (2, 64)):
        recipe = Recipe(model="x", data="x", output="x", task="classification", group_size=usual)
        model: Any = find_method("road_1_other_pairs").tune(tiny_bert(num_labels=2), recipe)
        assert model.peft_config["default"].group_size == other


def test_equal_numbers_of_learning_rates_and_the_nearest_name():
    assert {len(method.rates) for method in ALL_METHODS.values()} == {4}
    assert len({len(names) for names in FAMILIES.values()}) == 1
    with pytest.raises(RecipeError, match="did you mean 'road_1'"):
        find_method("road1")
