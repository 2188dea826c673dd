"""Which layers are rotated and what is refused; RoAd with LoRA around it."""

from __future__ import annotations

import pytest
import torch
from transformers import GgufConfig

import roadkit as rk
from roadkit import models
from roadkit.errors import AdapterError, ModelError, RecipeError
from roadkit.train import load_pair, run
from roadkit.train.model.tuned import borrowed, head_names, target_layers, tune


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


def test_heads_may_learn_at_a_rate_of_their_own(make_recipe, llama_folder):
    result = run(make_recipe(modules_to_save=("norm",), learning_rate=1e-2, head_learning_rate=1e-9, max_steps=4))
    adapter = rk.Adapter.load(result.adapter)
    torch.testing.assert_close(adapter.heads["model.norm"]["weight"], torch.ones(64), rtol=0, atol=1e-7)
    assert (adapter.a - 1).abs().max() > 1e-3
    with pytest.raises(RecipeError, match="head_learning_rate needs a head"):
        make_recipe(head_learning_rate=1e-3)


def test_norm_trained_beside_the_rotations_travels_with_them(make_recipe, llama_folder, close):
    result = run(make_recipe(modules_to_save=("norm",)))
    adapter = rk.Adapter.load(result.adapter)
    assert adapter.heads.keys() == {"model.norm"}
    assert not torch.equal(adapter.heads["model.norm"]["weight"], torch.ones(64))


def test_tuning_starts_at_the_base_model(make_recipe, tiny_llama):
    model, ids = tiny_llama(), torch.arange(3, 13).unsqueeze(0)
    with torch.no_grad():
        before = model(ids).logits
        for lora in (None, {"r": 2}):
            with borrowed(model):
                assert torch.equal(tune(model, make_recipe(lora=lora))(ids).logits, before)
        assert torch.equal(model(ids).logits, before)


def test_lora_goes_around_the_rotation(make_recipe, tiny_llama, close):
    """z = R(Wx) + s·BAx, not R((W + s·BA)x)."""
    model = tiny_llama()
    with borrowed(model), torch.no_grad():
        tuned = tune(model, make_recipe(lora={"r": 2, "alpha": 8}))
        layer = model.model.layers[0].self_attn.q_proj
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
        rotation = layer.base_layer
        x = torch.randn(3, 64)
        a, b = rk.rotation.lower("road_1", rotation.road_theta["default"], rotation.road_alpha["default"], 16)
        turned = rk.rotation.rotate(x @ rotation.base_layer.weight.T, a, b, 16)
        low_rank = x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
        close(layer(x), turned + 4 * low_rank)


def test_pair_is_saved_as_two_peft_directories_and_loads_back(make_recipe, llama_folder, close):
    recipe = make_recipe(lora={"r": 2}, eval_fraction=0.2, max_steps=6)
    result = run(recipe)
    assert sorted(path.name for path in result.adapter.iterdir()) == ["README.md", "lora", "road", "training.json"]
    model, ids = models.load_causal(llama_folder), torch.arange(7, 27).unsqueeze(0)
    adapter = rk.Adapter.load(result.adapter / "road")
    with torch.no_grad():
        with borrowed(model):
            paired = load_pair(model, result.adapter)(ids).logits
        assert not torch.allclose(paired, model(ids).logits, atol=1e-3)
        from peft import PeftModel

        rk.merge(model, adapter)  # in this order the LoRA is added to the rotated weights
        merged = PeftModel.from_pretrained(model, str(result.adapter / "lora")).merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, paired, rtol=1e-4, atol=1e-5)


def test_single_adapter_is_no_pair(make_recipe, tiny_llama, tmp_path):
    with pytest.raises(AdapterError, match="holds no road/ and lora/"):
        load_pair(tiny_llama(), tmp_path)


def test_dequantised_gguf_is_said(make_recipe, tiny_llama, caplog, tmp_path):
    model = tiny_llama()
    model.config.quantization_config = GgufConfig(dequantize=True)
    with borrowed(model):
        tune(model, make_recipe())
    assert "the GGUF file's weights were dequantised to torch.float32 and take" in caplog.text
    with pytest.raises(ModelError, match=r"x\.gguf: transformers would load a GGUF file by dequantising"):
        models.load_causal(str(tmp_path / "x.gguf"))
