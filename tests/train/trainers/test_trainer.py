"""What is trained in 32 bits, and what a step of several batches counts."""

from __future__ import annotations

import pytest
import torch

import roadkit as rk
from roadkit.errors import RecipeError
from roadkit.train import Recipe, run


def test_bf16_trains_a_float32_adapter(make_recipe):
    result = run(make_recipe(bf16=True))
    theta = next(iter(rk.Adapter.load(result.adapter).parameters.values()))[0]
    assert theta.dtype == torch.float32
    assert theta.abs().max() > 0


def test_heads_of_a_16_bit_run_are_trained_in_32(bert_folder, write_rows, tmp_path):
    rows = [{"text": ("good", "bad")[i % 2], "label": ("no", "yes")[i % 2]} for i in range(8)]
    recipe = Recipe(
        model=bert_folder, data=write_rows(rows), output=str(tmp_path / "a"), task="classification", group_size=16,
        max_steps=2, eval_fraction=0.25, bf16=True,
    )  # fmt: skip
    heads = rk.Adapter.load(run(recipe).adapter).heads
    assert heads and {tensor.dtype for head in heads.values() for tensor in head.values()} == {torch.float32}


def test_packing_in_16_bits_with_a_module_trained_whole(make_recipe):
    result = run(make_recipe(bf16=True, packing=True, max_length=128, modules_to_save=["norm"], max_steps=2))
    ((_, head),) = rk.Adapter.load(result.adapter).heads.items()
    assert head["weight"].dtype == torch.float32 and not torch.equal(head["weight"], torch.ones_like(head["weight"]))


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"batch_size": 2, "gradient_accumulation": 2}])
def test_memory_savers_train_alike(make_recipe, tmp_path, changes, close):
    plain = run(make_recipe(max_steps=3)).adapter
    other = run(make_recipe(max_steps=3, output=str(tmp_path / "other"), **changes)).adapter
    close(rk.Adapter.load(other).a, rk.Adapter.load(plain).a)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_accumulated_batches_of_labels_have_the_loss_of_a_whole_one(bert_folder, write_rows, tmp_path, task):
    rows = [{"text": ("good", "bad")[i % 2] * (1 + i % 3), "label": i % 2} for i in range(8)]
    values = {"model": bert_folder, "data": write_rows(rows), "task": task, "group_size": 16, "max_steps": 2}
    whole = run(Recipe(output=str(tmp_path / "whole"), batch_size=4, **values))
    parts = run(Recipe(output=str(tmp_path / "parts"), batch_size=2, gradient_accumulation=2, **values))
    assert parts.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"], rel=0.2)  # other dropout


def test_heads_may_learn_at_a_rate_of_their_own(make_recipe, llama_folder):
    result = run(make_recipe(modules_to_save=("norm",), learning_rate=1e-2, head_learning_rate=1e-9, max_steps=4))
    adapter = rk.Adapter.load(result.adapter)
    torch.testing.assert_close(adapter.heads["model.norm"]["weight"], torch.ones(64), rtol=0, atol=1e-7)
    assert (adapter.a - 1).abs().max() > 1e-3
    with pytest.raises(RecipeError, match="head_learning_rate needs a head"):
        make_recipe(head_learning_rate=1e-3)
