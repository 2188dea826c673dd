"""Engines are built from models and folders, within bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from roadkit import models
from roadkit.engine.engine import Engine
from roadkit.engine.request import Request
from roadkit.errors import AdapterError, ModelError, RequestError
from tests.engine.plain import (
    PAGE_BYTES,
    VOCAB,
    assert_greedy,
    prompt,
)


def test_from_a_folder(tmp_path, tiny_llama, tiny_tokenizer, adapters):
    tiny_llama(vocab_size=VOCAB).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    adapters["one"].save(tmp_path / "one")
    engine = Engine.from_pretrained(str(tmp_path / "model"), adapters={"one": tmp_path / "one"}, max_batch=2)
    assert engine.adapters == ("one",)
    text = "the quick brown fox"
    base, one = engine.generate([Request(prompt=text, adapter=name, max_tokens=6) for name in (None, "one")])
    plain, ids = tiny_llama(vocab_size=VOCAB), tiny_tokenizer(text)["input_ids"]
    assert_greedy(plain, None, ids, base)
    assert_greedy(plain, adapters["one"], ids, one)


def test_a_model_goes_where_there_is_a_gpu_in_its_own_type(tmp_path, tiny_llama, tiny_tokenizer, monkeypatch):
    tiny_llama(vocab_size=VOCAB).bfloat16().save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    folder = str(tmp_path)
    assert Engine.from_pretrained(folder).runner.model.dtype is torch.float32  # as the CPU's kernels compute
    monkeypatch.setattr(models, "best_device", lambda asked=None: asked or "meta")  # stands for a GPU
    cases: list[tuple[dict[str, Any], str, torch.dtype]] = [
        ({}, "meta", torch.bfloat16),
        ({"weights": "float32"}, "meta", torch.float32),
        ({"dtype": torch.float16}, "meta", torch.float16),
        ({"device": "cpu"}, "cpu", torch.float32),
    ]
    for options, device, dtype in cases:
        engine = Engine.from_pretrained(folder, **options)
        model = engine.runner.model
        assert (model.device.type, model.dtype, engine.bank.device.type) == (device, dtype, device), options
        few = Engine.from_pretrained(folder, **options, max_batch=64, cache_gib=64 * PAGE_BYTES / 2**30)
        assert few.scheduler.cache.num_pages == 64 * 4 // dtype.itemsize, "16-bit numbers take half the room"
    with pytest.raises(
        ModelError, match="weights='int8' is what the CPU packs, and the model is torch.bfloat16 on meta"
    ):
        Engine.from_pretrained(folder, weights="int8")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_batch": 0}, RequestError, "max_batch: input should be greater than or equal to 1, got '0'"),
        ({"cache_gib": 1e-9}, RequestError, r"cache_gib 1e-09 holds no page: one needs 8192 bytes"),
        ({"adapters": {"a b": "x/y"}}, AdapterError, "'a b' is no adapter name"),
        ({"adapters": {"a": "nowhere"}}, AdapterError, "adapter 'a': no such directory: nowhere"),
    ],
)
def test_impossible_engines_are_refused(make_engine, options, error, message):
    with pytest.raises(error, match=message):
        make_engine(**options)


def test_encoders_are_refused(tiny_bert, tiny_tokenizer):
    with pytest.raises(ModelError, match=r"BertModel has no language-model head to generate with"):
        Engine(tiny_bert(), tiny_tokenizer)


def test_context_is_bounded_by_model_option_and_cache(make_engine):
    for options, longest in (({}, 512), ({"max_context": 100}, 100), ({"cache_gib": 4 * PAGE_BYTES / 2**30}, 64)):
        engine = make_engine(**options)
        assert engine.max_context == longest  # what a server may give to a request that names no number
        fits = Request(prompt=prompt(0, longest - 2), max_tokens=2, ignore_eos=True)
        assert engine.generate([fits])[0].finish_reason == "length"
        with pytest.raises(RequestError, match=f"together at most {longest} fit the context"):
            engine.submit(Request(prompt=prompt(0, longest - 1), max_tokens=2))
