"""The encoder behind the seam: what it reads, how it queues, and its end."""

import asyncio
from typing import Any

import pytest
from transformers import RobertaConfig, RobertaModel

from roadkit import models
from roadkit.engine.options import EngineOptions
from roadkit.errors import QueueFull, RequestError
from roadkit.server.backends.base import EncodingJob
from roadkit.server.backends.choice import open_backend
from roadkit.server.backends.encoder import EncoderBackend, _deliver


def one_text(token_ids: list[int], **options) -> EncodingJob:
    options = {"tenant": "local", "adapter": None, "task": "embed", "deliver": lambda result: None} | options
    return EncodingJob(token_ids=token_ids, **options)


def test_positions_that_are_kept_for_padding_hold_no_text(tiny_tokenizer):
    config = RobertaConfig(
        vocab_size=384, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=20, pad_token_id=1,
    )  # fmt: skip
    engine = EncoderBackend(RobertaModel(config), tiny_tokenizer)
    assert engine.max_context == 18  # the first position is 2
    (vector,) = engine._forward([one_text([5] * 18)])
    assert len(vector) == 32
    with pytest.raises(RequestError, match="19 tokens, 1 to 18 fit"):
        engine.encode([5] * 19)


def test_a_tenant_takes_half_of_the_queue_at_most_and_a_whole_request_fits_in(tmp_path, tiny_bert, tiny_tokenizer):
    tiny_bert(vocab_size=384).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    for max_queue, texts in ((1, 256), (256, 1024)):
        engine: Any = open_backend(str(tmp_path), EngineOptions(), max_queue=max_queue, device="cpu")
        jobs = [one_text([5], tenant="acme") for _ in range(texts)]
        for job in jobs:
            engine.submit(job)
        with pytest.raises(QueueFull, match=f"{texts} of your requests"):
            engine.submit(one_text([5], tenant="acme"))
        engine.submit(one_text([5], tenant="zeta"))


def test_one_requests_trouble_with_its_result_is_not_the_others():
    delivered: list[Any] = []
    _deliver([one_text([5], deliver=lambda result: 1 / 0), one_text([5], deliver=delivered.append)], [[1.0], [2.0]])
    assert delivered == [[2.0]]


def test_an_encoder_on_a_lost_gpu_answers_and_stops(tiny_bert, tiny_tokenizer, monkeypatch):
    engine = EncoderBackend(tiny_bert(vocab_size=384), tiny_tokenizer)
    monkeypatch.setattr(engine, "_forward", lambda batch: 1 / 0)

    async def run():
        engine.start()
        for lost in (False, True):
            monkeypatch.setattr(models, "device_lost", lambda device, lost=lost: lost)
            answered = asyncio.get_running_loop().create_future()
            engine.submit(one_text([5], deliver=answered.set_result))
            assert isinstance(await asyncio.wait_for(answered, 30), ZeroDivisionError)
        for _ in range(100):
            if not engine.alive:
                break
            await asyncio.sleep(0.05)
        assert not engine.alive
        engine.close()

    asyncio.run(run())
