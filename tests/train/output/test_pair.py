"""RoAd with LoRA around it, written as two PEFT directories and read back."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

import roadkit as rk
from roadkit import models
from roadkit.errors import AdapterError
from roadkit.train import load_pair, run
from roadkit.train.model.borrowed import borrowed


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
        rk.merge(model, adapter)  # in this order the LoRA is added to the rotated weights
        merged = PeftModel.from_pretrained(model, str(result.adapter / "lora")).merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, paired, rtol=1e-4, atol=1e-5)


def test_single_adapter_is_no_pair(make_recipe, tiny_llama, tmp_path):
    with pytest.raises(AdapterError, match="holds no road/ and lora/"):
        load_pair(tiny_llama(), tmp_path)
