"""Adapters of every shape, and adapters that change, go or cannot be read while requests run."""

from __future__ import annotations

import shutil

import pytest

from roadkit.engine.request import Request
from roadkit.errors import ExpressionError
from tests.engine.plain import (
    VOCAB,
    assert_greedy,
    prompt,
)


def test_adapters_of_different_layers_and_group_sizes_serve_together(make_engine, tiny_llama, random_adapter):
    """Widths are 32, 64 and 128: a group size of 128 fits some layers only."""
    plain = tiny_llama(vocab_size=VOCAB)
    kinds = {
        "mlp": random_adapter(plain, 1, layers=("up_proj", "gate_proj"), group_size=128),
        "keys": random_adapter(plain, 2, layers=("k_proj", "v_proj"), group_size=32, variant="road_4"),
        "all": random_adapter(plain, 3, group_size=2, variant="road_2"),
    }
    for order in (["mlp", "keys", "all"], ["all", "keys", "mlp"]):
        engine = make_engine(adapters={name: kinds[name] for name in order})
        requests = [
            Request(prompt=prompt(i, 9 + i), adapter=name, max_tokens=8) for i, name in enumerate([*order, None])
        ]
        for i, answer in enumerate(engine.generate(requests)):
            assert_greedy(plain, kinds.get([*order, None][i]), prompt(i, 9 + i), answer)


def test_adapter_removed_while_requests_wait_and_run(make_engine, adapters, tiny_llama):
    engine = make_engine(max_batch=1)
    running, waiting = (engine.submit(Request(prompt=prompt(i), adapter="one", max_tokens=6)) for i in range(2))
    engine.step()
    engine.remove_adapter("one")
    engine.bank._slots._slots.clear()  # as if evicted: the waiting request finds neither name nor row
    assert_greedy(tiny_llama(vocab_size=VOCAB), adapters["one"], prompt(0), running.result())
    late = waiting.result()
    assert late.finish_reason == "error"
    assert "adapter 'one' has been removed" in str(late.error)
    with pytest.raises(ExpressionError, match="no adapter 'one'"):
        engine.remove_adapter("one")


def test_new_version_serves_new_requests_and_running_ones_keep_theirs(make_engine, adapters, tiny_llama):
    engine, plain = make_engine(), tiny_llama(vocab_size=VOCAB)
    old = engine.submit(Request(prompt=prompt(0), adapter="one", max_tokens=10, ignore_eos=True))
    for _ in range(3):
        engine.step()
    engine.add_adapter("one", adapters["two"])
    new = engine.submit(Request(prompt=prompt(0), adapter="one", max_tokens=10, ignore_eos=True))
    assert_greedy(plain, adapters["two"], prompt(0), new.result())
    assert_greedy(plain, adapters["one"], prompt(0), old.result())


def test_directory_that_disappears_is_its_requests_trouble(make_engine, adapters, tmp_path):
    adapters["one"].save(tmp_path / "a")
    engine = make_engine(adapters={"a": tmp_path / "a", "two": adapters["two"]})
    shutil.rmtree(tmp_path / "a")
    bad, good = engine.generate(
        [Request(prompt=prompt(i), adapter=name, max_tokens=3) for i, name in enumerate(("a", "two"))]
    )
    assert "no such directory" in str(bad.error)
    assert good.finish_reason != "error"
