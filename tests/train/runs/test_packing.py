"""Packed rows never see each other; length-grouped batches; the loss where there is one."""

from __future__ import annotations

import pytest
import torch

from roadkit.errors import RecipeError
from roadkit.train import run
from roadkit.train.model.loss import answer_loss, pad_batch
from roadkit.train.runs.trainer import GroupedByLength

ROWS = [
    {"input_ids": [3, 9, 8, 7, 6], "labels": [-100, -100, 8, 7, 6]},
    {"input_ids": [4, 5, 9], "labels": [-100, 5, 9]},
]


def test_answer_loss_is_the_models_own(tiny_llama, tiny_gpt2, tiny_gemma, close):
    batch = pad_batch(ROWS, 0)
    for model in (tiny_llama(), tiny_gpt2(), tiny_gemma(final_logit_softcapping=5.0)):
        loss, count = answer_loss(model, batch)
        assert count == 5
        close(loss / count, model(**batch).loss)


def test_packing_trains_as_single_rows_do(make_recipe, tmp_path, close):
    """The same rows in one step: all packed into a few sequences, or each alone in a batch of twelve."""
    import roadkit as rk

    options = {"max_steps": 1, "warmup": 0, "batch_size": 12}
    alone = run(make_recipe(output=str(tmp_path / "alone"), **options))
    packed = run(make_recipe(output=str(tmp_path / "packed"), packing=True, max_length=128, **options))
    assert packed.steps == alone.steps == 1
    close(rk.Adapter.load(packed.adapter).a, rk.Adapter.load(alone.adapter).a)
    assert packed.metrics["loss"] == pytest.approx(alone.metrics["loss"], rel=1e-5)


def test_packing_is_refused_where_rows_see_each_other(make_recipe, monkeypatch):
    """An attention that ignores positions: the check finds it before the first step."""
    import transformers.masking_utils

    monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    with pytest.raises(RecipeError, match=r"rows of one sequence see each other in this model \(LlamaForCausalLM"):
        run(make_recipe(packing=True, max_length=128))


def test_grouped_order_depends_on_seed_and_epoch_alone():
    lengths = [(7 * i) % 50 for i in range(200)]
    sampler = GroupedByLength(4, lengths, seed=1)
    first = list(sampler)
    torch.rand(5)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert sorted(sampler) == list(range(200))
    batches = [[lengths[i] for i in first[at : at + 4]] for at in range(0, 200, 4)]
    assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 5
