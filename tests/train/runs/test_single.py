"""Whole runs on a tiny model: what they write, what they leave alone, and how they fail."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import PeftModel

import roadkit as rk
from roadkit.errors import RecipeError
from roadkit.train import run


@pytest.fixture
def loaded(llama_folder):
    from roadkit import models

    return models.load_causal(llama_folder), models.load_tokenizer(llama_folder)


def test_run_writes_an_adapter_that_lowers_the_loss(make_recipe):
    result = run(make_recipe(max_steps=12, eval_fraction=0.2))
    losses = result.metrics
    assert result.steps == 12
    assert losses["loss"] < losses["train_loss"]
    adapter = rk.Adapter.load(result.adapter)
    assert adapter.variant == "road_1"
    assert adapter.base.fingerprint
    assert not (adapter.a == 1).all()
    facts = json.loads((result.adapter / "training.json").read_text())
    assert facts["steps"] == 12
    assert facts["metrics"]["eval_loss"] == losses["eval_loss"]


def test_adapter_gives_the_same_logits_through_roadkit_and_peft(make_recipe, loaded):
    result = run(make_recipe(variant="road_2"))
    model, tokenizer = loaded
    inputs = tokenizer("what is 3?", return_tensors="pt")
    with torch.no_grad():
        with rk.attached(model, rk.Adapter.load(result.adapter)):
            ours = model(**inputs).logits
        theirs = PeftModel.from_pretrained(model, str(result.adapter))(**inputs).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)  # two kernels, two layers


def test_loaded_model_is_left_exactly_as_it_was(make_recipe, loaded):
    model, tokenizer = loaded
    calls = []
    handle = model.model.layers[0].register_forward_hook(lambda *args: calls.append(1))
    modules, weights = list(model.named_modules()), {k: v.clone() for k, v in model.state_dict().items()}
    state, config = dict(vars(model)), copy.deepcopy(model.config.to_dict())
    generation = copy.deepcopy(model.generation_config.to_dict())
    run(make_recipe(gradient_checkpointing=True), model=model, tokenizer=tokenizer)
    assert list(model.named_modules()) == modules
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert dict(vars(model)) == state
    assert model.config.to_dict() == config
    assert model.generation_config.to_dict() == generation
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    handle.remove()  # a hook from before still goes the way it came
    calls.clear()
    model(torch.ones(1, 2, dtype=torch.long))
    assert not calls


def test_loaded_model_and_own_loading_train_alike(make_recipe, loaded, tmp_path):
    model, tokenizer = loaded
    first = run(make_recipe(output=str(tmp_path / "a")), model=model, tokenizer=tokenizer)
    again = run(make_recipe(output=str(tmp_path / "b")), model=model, tokenizer=tokenizer)
    alone = run(make_recipe(output=str(tmp_path / "c")))
    assert rk.Adapter.load(first.adapter) == rk.Adapter.load(again.adapter) == rk.Adapter.load(alone.adapter)


def test_model_is_restored_after_an_error(make_recipe, loaded):
    model, tokenizer = loaded
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(RecipeError, match="loss became"):
        run(make_recipe(learning_rate=1e30, max_grad_norm=0, warmup=0), model=model, tokenizer=tokenizer)
    assert [name for name, _ in model.named_modules()] == names


def test_model_without_tokenizer_is_refused(make_recipe, loaded):
    with pytest.raises(RecipeError, match="model and tokenizer together"):
        run(make_recipe(), model=loaded[0])


def test_tensorboard_needs_its_package(make_recipe, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="pip install tensorboard"):
        run(make_recipe(tensorboard=True))


def test_conv1d_layers_train(make_recipe, tiny_gpt2):
    from tests.train.conftest import VOCABULARY, make_tokenizer

    model = tiny_gpt2(vocab_size=VOCABULARY)
    result = run(make_recipe(max_steps=12), model=model, tokenizer=make_tokenizer())
    assert result.metrics["loss"] < result.metrics["train_loss"]
    assert "transformer.h.0.attn.c_attn" in rk.Adapter.load(result.adapter).layout.layers
