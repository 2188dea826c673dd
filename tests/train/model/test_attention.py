"""Which attention a step computes with, and that it is put back."""

from __future__ import annotations

import pytest
import torch

from roadkit import models
from roadkit.train import run, run_many
from roadkit.train.model import attention
from roadkit.train.model.attention import FUSED, PLAIN, SHORT, attention_for
from roadkit.train.recipe import Recipe


def recipe(**changes):
    return Recipe(**{"model": "x", "data": "x", "output": "x", "bf16": True} | changes)


@pytest.fixture
def model(tiny_llama):
    return tiny_llama()


def during(model, recipe, width=SHORT):
    with attention_for(model, recipe, width=width):
        return model.config._attn_implementation


def test_short_rows_in_16_bits_get_the_plain_one_until_the_step_is_over(model):
    assert model.config._attn_implementation == FUSED
    assert during(model, recipe()) == PLAIN
    assert model.config._attn_implementation == FUSED
    with pytest.raises(ZeroDivisionError), attention_for(model, recipe(), width=1):
        1 / 0  # noqa: B018
    assert model.config._attn_implementation == FUSED


@pytest.mark.parametrize(
    ("changes", "width"),
    [
        ({"bf16": False}, SHORT),
        ({"gradient_checkpointing": True}, SHORT),
        ({"packing": True, "max_length": 64}, SHORT),
        ({"task": "classification"}, SHORT),
        ({}, SHORT + 1),
    ],
)
def test_all_other_steps_keep_the_fused_one(model, changes, width):
    assert during(model, recipe(**changes), width) == FUSED


def test_a_model_with_another_attention_keeps_it(model):
    model.set_attn_implementation("flex_attention")
    assert during(model, recipe()) == "flex_attention"


def test_both_give_the_same_gradients(model):
    ids = torch.randint(5, 100, (2, 40))
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0  # padding
    found = []
    for precision in (recipe(), recipe(bf16=False)):
        model.zero_grad()
        with attention_for(model, precision, width=40):
            logits = model(input_ids=ids, attention_mask=mask).logits
            (logits[mask.bool()] ** 2).mean().backward()
        found.append(model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("many", [False, True])
def test_training_chooses_by_the_width_of_each_batch(make_recipe, write_rows, llama_folder, monkeypatch, many):
    seen = []
    inner = attention.attention_for

    def watched(model, recipe, *, width):
        seen.append(width)
        return inner(model, recipe, width=width)

    base, tokenizer = models.load_causal(llama_folder, dtype="bfloat16"), models.load_tokenizer(llama_folder)
    used = set()
    base.model.layers[0].register_forward_hook(lambda *args: used.add(base.config._attn_implementation))
    options = {"max_steps": 3, "bf16": True}
    if many:
        rows = [{"prompt": f"what is {i}?", "completion": str(i), "adapter": f"a{i % 2}"} for i in range(12)]
        monkeypatch.setattr("roadkit.train.runs.joint_training.attention_for", watched)
        run_many(make_recipe(**options, data=write_rows(rows)), model=base, tokenizer=tokenizer)
    else:
        monkeypatch.setattr("roadkit.train.trainers.trainer.attention_for", watched)
        run(make_recipe(**options), model=base, tokenizer=tokenizer)
    assert len(seen) == 3 and max(seen) <= SHORT
    assert used == {PLAIN}
    assert base.config._attn_implementation == FUSED
