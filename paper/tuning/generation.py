"""Greedy answers by transformers' `generate`, for what roadkit's engine does not have: edits of hidden states, prefixes.

texts = answer_greedily(model, tokenizer, prompts, 32)      # in batches of 8
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from roadkit.engine.text import end_ids_of
from roadkit.train.model.base import padding

BATCH = 8  # prompts answered at a time


@torch.no_grad()
def answer_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    new_tokens: int,
    no_repeat_ngram_size: int = 0,
    repetition_penalty: float = 1.0,
) -> list[str]:
    """Greedy answers to one batch, padded on the left. The engine's end tokens end an answer.

    The repetition settings of the model's own generation configuration are not used.
    """
    with padding(tokenizer, model):
        inputs = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left").to(model.device)
        output = model.generate(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=new_tokens, do_sample=False,
            no_repeat_ngram_size=no_repeat_ngram_size, repetition_penalty=repetition_penalty,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=sorted(end_ids_of(model, tokenizer)) or None,
        )  # fmt: skip
    return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def answer_greedily(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    new_tokens: int,
    *,
    around: Callable[[Sequence[str]], AbstractContextManager] = lambda batch: nullcontext(),
) -> list[str]:
    """`answer_batch` for `BATCH` prompts at a time.

    around   gives a context in which a batch is answered
    """
    texts: list[str] = []
    for at in range(0, len(prompts), BATCH):
        batch = prompts[at : at + BATCH]
        with around(batch):
            texts += answer_batch(model, tokenizer, batch, new_tokens=new_tokens)
    return texts
