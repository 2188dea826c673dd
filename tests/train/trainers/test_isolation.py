"""Packed rows never see each other."""

from __future__ import annotations

import pytest

import roadkit as rk
from roadkit.errors import RecipeError
from roadkit.train import run


def test_packing_trains_as_single_rows_do(make_recipe, tmp_path, close):
    """The same rows in one step: all packed into a few sequences, or each alone in a batch of twelve."""
    options = {"max_steps": 1, "warmup": 0, "batch_size": 12}
    alone = run(make_recipe(output=str(tmp_path / "alone"), **options))
    packed = run(make_recipe(output=str(tmp_path / "packed"), packing=True, max_length=128, **options))
    assert packed.steps == alone.steps == 1
    close(rk.Adapter.load(packed.adapter).a, rk.Adapter.load(alone.adapter).a)
    assert packed.metrics["loss"] == pytest.approx(alone.metrics["loss"], rel=1e-5)


def test_packing_is_refused_if_rows_see_each_other(make_recipe, monkeypatch):
    """An attention that ignores positions: the check finds it before the first step."""
    import transformers.masking_utils

    monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    with pytest.raises(RecipeError, match=r"rows of one sequence see each other in this model \(LlamaForCausalLM"):
        run(make_recipe(packing=True, max_length=128))
