"""Training starts at the base model; a LoRA goes around the rotations; heads travel with them."""

from __future__ import annotations

import pytest
import torch
from transformers import GgufConfig

import roadkit as rk
from roadkit import models
from roadkit.errors import ModelError
from roadkit.rotation import lower, rotate
from roadkit.train import run
from roadkit.train.model.borrowed import borrowed
from roadkit.train.model.trainable import make_trainable


def test_norm_trained_beside_the_rotations_travels_with_them(make_recipe, llama_folder, close):
    result = run(make_recipe(modules_to_save=("norm",)))
    adapter = rk.Adapter.load(result.adapter)
    assert adapter.heads.keys() == {"model.norm"}
    assert not torch.equal(adapter.heads["model.norm"]["weight"], torch.ones(64))


def test_training_starts_at_the_base_model(make_recipe, tiny_llama):
    model, ids = tiny_llama(), torch.arange(3, 13).unsqueeze(0)
    with torch.no_grad():
        before = model(ids).logits
        for lora in (None, {"r": 2}):
            with borrowed(model):
                assert torch.equal(make_trainable(model, make_recipe(lora=lora))(ids).logits, before)
        assert torch.equal(model(ids).logits, before)


def test_lora_goes_around_the_rotation(make_recipe, tiny_llama, close):
    """z = R(Wx) + s·BAx, not R((W + s·BA)x)."""
    model = tiny_llama()
    with borrowed(model), torch.no_grad():
        tuned = make_trainable(model, make_recipe(lora={"r": 2, "alpha": 8}))
        layer = model.model.layers[0].self_attn.q_proj
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
        rotation = layer.base_layer
        x = torch.randn(3, 64)
        a, b = lower("road_1", rotation.road_theta["default"], rotation.road_alpha["default"], 16)
        turned = rotate(x @ rotation.base_layer.weight.T, a, b, 16)
        low_rank = x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
        close(layer(x), turned + 4 * low_rank)


def test_dequantised_gguf_is_said(make_recipe, tiny_llama, caplog, tmp_path):
    model = tiny_llama()
    model.config.quantization_config = GgufConfig(dequantize=True)
    with borrowed(model):
        make_trainable(model, make_recipe())
    assert "the GGUF file's weights were dequantised to torch.float32 and take" in caplog.text
    with pytest.raises(ModelError, match=r"x\.gguf: transformers would load a GGUF file by dequantising"):
        models.load_causal(str(tmp_path / "x.gguf"))
