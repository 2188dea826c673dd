"""Chunks add up to the completion, and what is cancelled or interrupted holds nothing."""

from __future__ import annotations

import pytest

from roadkit.engine.request import Request
from tests.engine.plain import (
    NAMES,
    assert_same,
    nothing_held,
    prompt,
)


@pytest.mark.parametrize("stop", [(), ("the", "q")])
def test_chunks_add_up_to_the_completion(make_engine, stop):
    for i, name in enumerate(NAMES):
        item = Request(prompt=prompt(i), adapter=name, max_tokens=15, logprobs=1, stop=stop, temperature=1.0, seed=i)
        chunks = list(make_engine().stream(item))
        completion = chunks[-1].completion
        assert completion is not None
        assert all(chunk.completion is None for chunk in chunks[:-1])
        assert "".join(chunk.text for chunk in chunks) == completion.text
        assert [token for chunk in chunks for token in chunk.token_ids] == completion.token_ids
        assert [entry for chunk in chunks for entry in chunk.logprobs] == completion.logprobs
        assert_same([completion], make_engine().generate([item]))


@pytest.mark.parametrize("reason", ["cancelled", "error"])
def test_chunks_add_up_when_it_ends_early(make_engine, reason, monkeypatch):
    engine = make_engine()
    stream = engine.submit(Request(prompt=prompt(0), max_tokens=15, logprobs=0, ignore_eos=True))
    chunks = []
    for chunk in stream:
        chunks.append(chunk)
        if len(chunks) == 4 and reason == "cancelled":
            stream.cancel()
        elif len(chunks) == 4:
            monkeypatch.setattr(engine.runner, "step", None)
    completion = chunks[-1].completion
    assert completion is not None
    assert completion.finish_reason == reason
    assert len(completion.token_ids) == 4
    assert [token for chunk in chunks for token in chunk.token_ids] == completion.token_ids
    assert [entry for chunk in chunks for entry in chunk.logprobs] == completion.logprobs
    assert "".join(chunk.text for chunk in chunks) == completion.text


def test_a_stream_may_be_asked_again(make_engine):
    stream = make_engine().submit(Request(prompt=prompt(0), max_tokens=3, ignore_eos=True))
    for _ in stream:
        pass
    assert stream.result() is stream.result()
    assert list(stream) == []


def test_leaving_a_stream_early_cancels(make_engine):
    engine = make_engine()
    for chunk in engine.stream(Request(prompt=prompt(0), max_tokens=50, ignore_eos=True)):
        assert chunk.completion is None
        break
    assert not engine.scheduler.running
    assert not engine.step()


def test_cancelling_frees_row_and_pages_within_a_step(make_engine):
    engine = make_engine(max_batch=2)
    items = [Request(prompt=prompt(i, 40), adapter=NAMES[i], max_tokens=20, ignore_eos=True) for i in range(4)]
    expected = make_engine().generate(items)
    streams = [engine.submit(item) for item in items]
    for _ in range(5):
        engine.step()
    streams[0].cancel()  # running
    streams[3].cancel()  # waiting
    streams[3].cancel()
    assert len(engine.scheduler.running) == 1
    engine.step()
    assert len(engine.scheduler.running) == 2
    answers = [stream.result() for stream in streams]
    assert [answer.finish_reason for answer in answers] == ["cancelled", "length", "length", "cancelled"]
    assert_same(answers[1:3], expected[1:3])
    assert answers[0].token_ids == expected[0].token_ids[: len(answers[0].token_ids)]
    streams[1].cancel()
    assert streams[1].result().finish_reason == "length"
    assert nothing_held(engine)


def test_interrupted_generate_leaves_nothing_running(make_engine, monkeypatch):
    engine = make_engine()
    step, count = engine.runner.step, iter(range(100))

    def interrupted(batch, bank):
        if next(count) == 3:
            raise KeyboardInterrupt
        return step(batch, bank)

    monkeypatch.setattr(engine.runner, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate([Request(prompt=prompt(i), adapter="one", max_tokens=9, ignore_eos=True) for i in range(3)])
    assert nothing_held(engine)
