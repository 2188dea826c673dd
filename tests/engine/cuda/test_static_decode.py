"""The fixed-shape decode step that CUDA captures answers like the ordinary one. Here it runs uncaptured."""

import pytest
import torch

from roadkit.engine.bank import Bank
from roadkit.engine.cache import PagedCache
from roadkit.engine.cuda.static_decode import SIZES, StaticDecode
from roadkit.engine.request import Request
from roadkit.engine.runner import Runner
from roadkit.engine.scheduler import Scheduler
from roadkit.engine.sequence import TokenSequence


class UsedCache(PagedCache):
    """Its pages hold what a request with broken numbers left behind."""

    def layer(self, index, num_heads, head_dim, dtype):
        new = index not in self.keys
        keys, values = super().layer(index, num_heads, head_dim, dtype)
        return (keys.fill_(torch.nan), values.fill_(torch.nan)) if new else (keys, values)


def decode(model, adapters, *, static: bool, steps: int = 12, requests: int = 5, kind: type = PagedCache):
    """Greedy tokens of `requests` requests of different lengths, each with its own adapter; shapes that were used."""
    cache = kind(64, device=torch.device("cpu"))
    runner = Runner(model, cache)
    bank = Bank(model, adapters, bind=runner.bind)
    if static:
        runner.static = StaticDecode(runner.model, cache, runner.current)
    scheduler = Scheduler(cache, acquire=lambda s: bank.acquire(s.terms), release=bank.release)
    sequences = []
    for i in range(requests):
        prompt = list(range(3 + i, 14 + 4 * i))
        name = None if i == 0 else f"a{i}"
        request = Request(prompt=prompt, adapter=name, max_tokens=steps)
        sequences.append(TokenSequence(i, request, bank.parse(name), prompt))
        scheduler.submit(sequences[-1])
    for _ in range(steps):
        batch = scheduler.next_batch()
        chosen = [(item.sequence, int(item.last.argmax())) for item in runner.step(batch, bank)]
        for sequence, token in chosen:
            sequence.token_ids.append(token)
        scheduler.advance(batch)
    shapes = [] if runner.static is None else runner.static.shapes
    return [sequence.token_ids[sequence.num_prompt :] for sequence in sequences], shapes


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gemma", "tiny_gpt2"])
def test_static_steps_choose_the_same_tokens(family, request, random_adapter):
    make = request.getfixturevalue(family)
    adapters = {f"a{i}": random_adapter(make(), i) for i in range(1, 5)}
    expected, _ = decode(make(), adapters, static=False)
    actual, shapes = decode(make(), adapters, static=True)
    assert actual == expected
    assert all(size in SIZES and width & (width - 1) == 0 for size, width in shapes) and len(shapes) >= 2


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gemma"])
@pytest.mark.parametrize("static", [False, True])
def test_what_a_page_held_before_does_not_count(family, static, request, random_adapter):
    make = request.getfixturevalue(family)
    adapters = {f"a{i}": random_adapter(make(), i) for i in range(1, 5)}
    expected, _ = decode(make(), adapters, static=static)
    assert decode(make(), adapters, static=static, kind=UsedCache)[0] == expected


def test_padding_writes_only_to_the_spare_page(tiny_llama, random_adapter):
    adapters = {f"a{i}": random_adapter(tiny_llama(), i) for i in range(1, 3)}
    cache = PagedCache(8, device=torch.device("cpu"))
    model = tiny_llama()
    runner = Runner(model, cache)
    bank = Bank(model, adapters, bind=runner.bind)
    static = StaticDecode(runner.model, cache, runner.current)
    batch = []
    for i in range(3):  # three sequences: one row of padding
        sequence = TokenSequence(i, Request(prompt=[5], max_tokens=1), (), [5])
        sequence.row, sequence.pages = bank.acquire(()), cache.allocate(1) or []
        batch.append((sequence, 1))
    with torch.inference_mode():
        static.logits(batch, bank)
    written = {page for keys in cache.keys.values() for page in keys.abs().sum((1, 2, 3)).nonzero().flatten().tolist()}
    assert written - {cache.spare_page} == {sequence.pages[0] for sequence, _ in batch}
