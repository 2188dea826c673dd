"""The loss of the answers alone is the model's own loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from roadkit.train.data.batches import pad_batch
from roadkit.train.model.loss import answer_loss

ROWS: list[Mapping[str, Any]] = [
    {"input_ids": [3, 9, 8, 7, 6], "labels": [-100, -100, 8, 7, 6]},
    {"input_ids": [4, 5, 9], "labels": [-100, 5, 9]},
]


def test_answer_loss_is_the_models_own(tiny_llama, tiny_gpt2, tiny_gemma, close):
    batch = pad_batch(ROWS, 0)
    for model in (tiny_llama(), tiny_gpt2(), tiny_gemma(final_logit_softcapping=5.0)):
        loss, count = answer_loss(model, batch)
        assert count == 5
        close(loss / count, model(**batch).loss)
