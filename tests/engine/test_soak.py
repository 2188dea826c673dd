"""A thousand requests that join, leave and are cancelled, under forty adapters: memory stays flat, answers stay right.

pytest -m slow tests/engine/test_soak.py
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from roadkit import modules
from roadkit.adapter import Adapter
from roadkit.engine.engine import Engine
from roadkit.engine.request import Request
from roadkit.errors import QueueFull
from roadkit.expression import compose
from tests.engine.plain import VOCAB, assert_greedy, nothing_held

pytestmark = pytest.mark.slow

REQUESTS, WARM = 1000, 300


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def requests(names: list[str], chance: random.Random):
    """Prompts that often share a beginning, every kind of adapter expression, some that cannot be served."""
    beginnings = [[chance.randrange(3, VOCAB) for _ in range(length)] for length in (40, 70, 100)]
    for _ in range(REQUESTS):
        tail = [chance.randrange(3, VOCAB) for _ in range(chance.choice((1, 5, 30)))]
        one, other = chance.choice(names), chance.choice(names)
        adapter = chance.choice([None, one, one, one, f"{one}*0.5", f"{one} + {other}", f"-{one}", "nobody"])
        yield Request(
            prompt=[*chance.choice([[], *beginnings]), *tail],
            adapter=adapter,
            max_tokens=chance.choice((1, 4, 12)),
            temperature=chance.choice((0.0, 0.0, 0.0, 0.9)),
            seed=chance.randrange(100),
            ignore_eos=chance.random() < 0.5,
        )


def test_thousand_requests(tmp_path, tiny_llama, tiny_tokenizer, random_adapter):
    chance = random.Random(0)
    plain = tiny_llama(vocab_size=VOCAB)
    adapters: dict[str, Adapter] = {}
    for i in range(40):
        options = {
            "variant": ("road_1", "road_1", "road_2", "road_4")[i % 4],
            "layers": (("",), ("mlp",), ("q_proj",))[i % 3],
        }
        adapters[f"a{i}"] = random_adapter(plain, i, **options)
    sources = {}
    for name, adapter in adapters.items():
        adapter.save(tmp_path / name)
        sources[name] = tmp_path / name if int(name[1:]) % 4 else adapter
    engine = Engine(
        tiny_llama(vocab_size=VOCAB), tiny_tokenizer, adapters=sources, max_batch=6, slots=5, max_waiting=20,
        cache_gib=30 * 8192 / 2**30,
    )  # fmt: skip
    preempted, preempt = [], engine.scheduler._preempt
    engine.scheduler._preempt = lambda sequence: (preempted.append(1), preempt(sequence))  # type: ignore[method-assign]

    pending, done, warm, refused = [], [], 0.0, 0
    for count, request in enumerate(requests(list(adapters), chance)):
        while True:
            try:
                pending.append((request, engine.submit(request)))
            except QueueFull:
                engine.step()
                continue
            except ValueError as error:
                assert "nobody" in str(error)
                refused += 1
            break
        for _ in range(chance.choice((0, 1, 3))):
            engine.step()
        if pending and chance.random() < 0.1:
            chance.choice(pending[-8:])[1].cancel()
        if chance.random() < 0.05:  # a client that goes away while others come
            name = f"a{chance.randrange(40)}"
            engine.remove_adapter(name)
            engine.add_adapter(name, sources[name])
        if count == WARM:
            warm = resident_mb()
    while engine.step():
        pass
    grown = resident_mb() - warm
    assert nothing_held(engine)
    assert preempted, "the cache was never short, so this shows less than it should"
    done = [(request, stream.result()) for request, stream in pending]
    assert len(done) + refused == REQUESTS
    reasons = [answer.finish_reason for _, answer in done]
    assert reasons.count("cancelled") > 30
    assert grown < 10, f"{grown:.1f} MB more after the last {REQUESTS - WARM} requests"

    alone = Engine(tiny_llama(vocab_size=VOCAB), tiny_tokenizer, adapters=adapters)
    composed: dict[str, Adapter] = {}
    reused = 0
    for request, answer in done:
        if answer.finish_reason == "error":
            assert request.adapter is not None
            with pytest.raises(ValueError):  # noqa: PT011  (such as a composition that grows out of bounds)
                composed[request.adapter] = compose(request.adapter, adapters)
            continue
        if request.adapter is not None and request.adapter not in composed:
            composed[request.adapter] = compose(request.adapter, adapters)
        reused += answer.cached_tokens > 0
        prompt = list(request.prompt)
        if request.temperature:
            (expected,) = alone.generate([request])
            assert answer.token_ids == expected.token_ids[: len(answer.token_ids)]
            assert answer.finish_reason in ("cancelled", expected.finish_reason)
        elif answer.token_ids:
            greedy = answer.model_copy(update={"finish_reason": "length"})
            if request.ignore_eos:
                assert 2 not in answer.token_ids
                _assert_greedy_but_for_the_end(plain, composed.get(request.adapter or ""), prompt, answer.token_ids)
            else:
                assert_greedy(plain, composed.get(request.adapter or ""), prompt, greedy)  # type: ignore[arg-type]
    assert reused > 10


def _assert_greedy_but_for_the_end(model, adapter: Adapter | None, prompt: list[int], tokens: list[int]) -> None:
    with torch.no_grad():
        if adapter is None:
            logits = model(torch.tensor([prompt + tokens])).logits[0]
        else:
            with modules.attached(model, adapter):
                logits = model(torch.tensor([prompt + tokens])).logits[0]
    logits = logits[len(prompt) - 1 : -1]
    logits[:, 2] = -torch.inf
    chosen = logits.gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1)
    assert (logits.max(dim=1).values - chosen).max() < 1e-3
