"""Scheduling changes no answer: chunks, preemption, shared beginnings, too few slots."""

from __future__ import annotations

import threading

import pytest

from roadkit.engine.engine import Engine
from roadkit.engine.request import Request
from roadkit.errors import QueueFull
from tests.engine.plain import (
    NAMES,
    PAGE_BYTES,
    VOCAB,
    assert_greedy,
    assert_same,
    meaning,
    nothing_held,
    prompt,
)


@pytest.mark.parametrize(("chunk", "burst"), [(1, 1), (7, 7), (16, 40)])
def test_chunked_prefill_is_whole_prefill(make_engine, chunk, burst):
    requests = [Request(prompt=prompt(i, 10 + 30 * i), adapter=name, max_tokens=6) for i, name in enumerate(NAMES[:4])]
    expected, engine = make_engine().generate(requests), make_engine()
    engine.scheduler.chunk, engine.scheduler.burst = chunk, burst
    assert_same(engine.generate(requests), expected)


def preemptions(engine: Engine, monkeypatch) -> list:
    seen, preempt = [], engine.scheduler._preempt
    monkeypatch.setattr(engine.scheduler, "_preempt", lambda sequence: (seen.append(sequence), preempt(sequence)))
    return seen


def test_preemption_changes_no_answer(make_engine, monkeypatch):
    options = {"max_tokens": 40, "ignore_eos": True, "logprobs": 0, "prompt_logprobs": 1}
    requests = [
        Request(prompt=prompt(i, 20), adapter=name, temperature=(0, 0.8)[i % 2], seed=i, **options)
        for i, name in enumerate(NAMES)
    ]
    expected, engine = make_engine().generate(requests), make_engine(cache_gib=9 * PAGE_BYTES / 2**30)
    seen = preemptions(engine, monkeypatch)
    answers = engine.generate(requests)
    assert len(seen) >= 2
    assert_same(answers, expected)
    for answer, wanted in zip(answers, expected, strict=True):
        assert answer.prompt_logprobs is not None
        assert wanted.prompt_logprobs is not None
        assert [e and e.token_id for e in answer.prompt_logprobs] == [e and e.token_id for e in wanted.prompt_logprobs]
        assert answer.logprobs is not None
        assert [entry.token_id for entry in answer.logprobs] == answer.token_ids
    assert engine.scheduler.cache.num_free == 9


def test_preempted_request_keeps_its_version_of_an_adapter(make_engine, adapters, tiny_llama, monkeypatch):
    engine = make_engine(cache_gib=5 * PAGE_BYTES / 2**30)
    seen = preemptions(engine, monkeypatch)
    streams = [
        engine.submit(Request(prompt=prompt(i, 30), adapter="one", max_tokens=20, ignore_eos=True)) for i in range(2)
    ]
    for _ in range(100):
        if not seen:
            engine.step()
    assert seen
    engine.add_adapter("one", adapters["two"])
    engine.remove_adapter("two")
    plain = tiny_llama(vocab_size=VOCAB)
    for i, stream in enumerate(streams):
        assert_greedy(plain, adapters["one"], prompt(i, 30), stream.result())


def test_beginnings_are_reused_and_change_no_answer(make_engine, tiny_llama, adapters):
    plain, engine = tiny_llama(vocab_size=VOCAB), make_engine()
    beginning = prompt(0, 50)
    for name, cached in (("one", 0), ("one", 48), ("two", 0), (None, 0), ("one*0.5", 0), ("one*0.50", 48), (None, 48)):
        item = Request(prompt=[*beginning, *prompt(len(str(name)), 4)], adapter=name, max_tokens=5)
        (answer,) = engine.generate([item])
        assert answer.cached_tokens == cached, name
        assert_greedy(plain, meaning(name, adapters), list(item.prompt), answer)  # type: ignore[arg-type]


def test_beginnings_of_an_older_version_are_not_reused(make_engine, tmp_path, adapters, tiny_llama):
    adapters["one"].save(tmp_path / "a")
    engine, plain = make_engine(adapters={"a": tmp_path / "a", "same": adapters["one"]}), tiny_llama(vocab_size=VOCAB)
    item = Request(prompt=prompt(0, 50), adapter="a", max_tokens=4)
    assert engine.generate([item])[0].cached_tokens == 0
    assert engine.generate([item.model_copy(update={"adapter": "same"})])[0].cached_tokens == 48, "equal content"
    adapters["two"].save(tmp_path / "a")
    engine.add_adapter("a", tmp_path / "a")
    (answer,) = engine.generate([item])
    assert answer.cached_tokens == 0
    assert_greedy(plain, adapters["two"], prompt(0, 50), answer)


def test_more_adapters_than_slots_queue(make_engine, tiny_llama, random_adapter):
    plain = tiny_llama(vocab_size=VOCAB)
    many = {f"a{i}": random_adapter(plain, i, layers=("mlp",)) for i in range(7)}
    engine = make_engine(adapters=many, slots=2, max_batch=4)
    requests = [Request(prompt=prompt(i), adapter=f"a{i % 7}", max_tokens=5) for i in range(21)]
    for i, answer in enumerate(engine.generate(requests)):
        assert_greedy(plain, many[f"a{i % 7}"], prompt(i), answer)


def test_full_queue_refuses_and_generate_waits(make_engine):
    engine = make_engine(max_batch=1, max_waiting=2)
    items = [Request(prompt=prompt(i), max_tokens=2, ignore_eos=True) for i in range(7)]
    streams = [engine.submit(item) for item in items[:2]]
    with pytest.raises(QueueFull, match="2 requests are waiting, at most 2 may; try again later"):
        engine.submit(items[2])
    answers = engine.generate(items)
    assert [answer.finish_reason for answer in answers] == ["length"] * 7
    assert_same(answers[:2], [stream.result() for stream in streams])


def test_threads_share_an_engine(make_engine):
    engine = make_engine(max_batch=3)
    items = [Request(prompt=prompt(i), adapter=NAMES[i % 6], max_tokens=8) for i in range(9)]
    expected, answers = make_engine().generate(items), [None] * 9

    def ask(i: int) -> None:
        answers[i] = engine.generate([items[i]])[0]  # type: ignore[call-overload]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert_same(answers, expected)  # type: ignore[arg-type]
    assert nothing_held(engine)
