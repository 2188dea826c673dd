"""A trained decoder answers as it was after any epoch, and as transformers does with the adapter merged."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import roadkit as rk
from paper.scoring.suites import SUITES, training_rows
from paper.tuning.decoders import TunedDecoder, prompt_of
from roadkit import models


@pytest.mark.parametrize("method", ["road_1", "lora"])
def test_every_epoch_is_kept_and_the_last_is_the_trained_model(decoder, data, method):
    settings = dataclasses.replace(decoder, epochs=3, new_tokens=8)
    table = training_rows(SUITES["commonsense"], data, scale="small", rows=settings.rows, seed=0)
    question = ["Is 1 even?"]
    kept = TunedDecoder.train(settings, method, 5e-2, table, seed=0, every_epoch=True)
    answers = [kept.answer(question, new_tokens=8, epoch=epoch) for epoch in range(3)]
    assert len(kept.epochs) == 3 and answers[0] != answers[2]
    assert kept.answer(question, new_tokens=8, epoch=0) == answers[0]  # whatever was asked in between
    last = TunedDecoder.train(settings, method, 5e-2, table, seed=0)
    assert len(last.epochs) == 1 and last.answer(question, new_tokens=8) == answers[2]


def test_the_engine_answers_as_transformers_does_with_the_adapter_merged(decoder, data):
    table = training_rows(SUITES["commonsense"], data, scale="small", rows=decoder.rows, seed=0)
    tuned = TunedDecoder.train(dataclasses.replace(decoder, epochs=6), "road_1", 3e-2, table, seed=0)
    questions = ["Is 1 even?", "Is 22 even?"]
    answers = tuned.answer(questions, new_tokens=6)
    assert answers != TunedDecoder.train(decoder, "base", 0.0, table, seed=0).answer(questions, new_tokens=6)
    model: Any = models.load_causal(decoder.model)
    tokenizer = models.load_tokenizer(decoder.model)
    assert tuned.adapter is not None
    rk.merge(model, tuned.adapter)
    for question, answer in zip(questions, answers, strict=True):
        ids = tokenizer(prompt_of(question), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
            )
        assert tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True) == answer
