from __future__ import annotations

import shutil
import threading

import pytest
import torch

from roadkit import models, modules
from roadkit.adapter import Adapter
from roadkit.engine.engine import Engine
from roadkit.engine.request import Completion, Request
from roadkit.errors import AdapterError, ExpressionError, ModelError, QueueFull, RequestError
from roadkit.kernels import native
from tests.conftest import TOLERANCE, random_parameters

VOCAB = 384
PAGE_BYTES = 2 * 16 * 2 * 16 * 4 * 2  # of tiny_llama: keys and values, positions, heads, head_dim, bytes, layers
NAMES = ["one", None, "two*0.5", "one + two", "-one", "two"]


def prompt(seed: int, length: int = 9) -> list[int]:
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def adapters(tiny_llama, random_adapter):
    """Two adapters for tiny_llama, and what the names of `NAMES` mean."""
    one, two = (random_adapter(tiny_llama(vocab_size=VOCAB), seed, layers=("proj",)) for seed in (1, 2))
    return {"one": one, "two": two}


def meaning(name: str | None, adapters) -> Adapter | None:
    from roadkit.expression import compose

    return None if name is None else compose(name, adapters)


@pytest.fixture
def make(tiny_llama, tiny_tokenizer, adapters):
    """An engine on tiny_llama with both adapters; options override."""

    def build(**options) -> Engine:
        model = options.pop("model", None) or tiny_llama(vocab_size=VOCAB)
        return Engine(model, tiny_tokenizer, **{"adapters": adapters, "max_batch": 8} | options)

    return build


def forward(model, adapter: Adapter | None, token_ids: list[int]) -> torch.Tensor:
    """Plain transformers' logits [tokens, vocab], the adapter attached."""
    with torch.no_grad():
        if adapter is None:
            return model(torch.tensor([token_ids])).logits[0]
        with modules.attached(model, adapter):
            return model(torch.tensor([token_ids])).logits[0]


def generate(model, adapter: Adapter | None, token_ids: list[int], count: int, **options) -> list[int]:
    """What plain transformers answers, greedily, the adapter attached."""
    options = {"max_new_tokens": count, "do_sample": False, "attention_mask": torch.ones(1, len(token_ids))} | options
    if adapter is None:
        return model.generate(torch.tensor([token_ids]), **options)[0, len(token_ids) :].tolist()
    with modules.attached(model, adapter):
        return model.generate(torch.tensor([token_ids]), **options)[0, len(token_ids) :].tolist()


def assert_greedy(
    model, adapter: Adapter | None, token_ids: list[int], completion: Completion, gap: float = 1e-3
) -> None:
    """Every token is plain transformers' best next one, or within `gap` of its logit."""
    assert completion.finish_reason in ("length", "stop"), completion
    logits = forward(model, adapter, token_ids + completion.token_ids)[len(token_ids) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(completion.token_ids).unsqueeze(1)).squeeze(1)
    lost = (logits.max(dim=1).values - chosen).max()
    assert lost < gap, f"a token was chosen whose logit is {lost:.3g} below the best"


def assert_same(actual: list[Completion], expected: list[Completion]) -> None:
    assert [item.token_ids for item in actual] == [item.token_ids for item in expected]
    assert [(item.text, item.finish_reason) for item in actual] == [
        (item.text, item.finish_reason) for item in expected
    ]


def close_to(actual, expected) -> None:
    actual, expected = torch.tensor(actual), torch.as_tensor(expected)
    tolerance, size = TOLERANCE[torch.float32], float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=tolerance["rtol"], atol=tolerance["rtol"] * size)


# ---- the same answers as plain transformers ---------------------------------------------------------------------


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2", "tiny_qwen", "tiny_gemma"])
@pytest.mark.parametrize("variant", ["road_1", "road_2"])
def test_mixed_batch_gives_transformers_tokens(family, variant, request, tiny_tokenizer, random_adapter):
    make_model = request.getfixturevalue(family)
    plain = make_model(vocab_size=VOCAB)
    adapters = {
        "one": random_adapter(plain, 1, variant=variant),
        "two": random_adapter(plain, 2, variant=variant, group_size=16),
    }
    engine = Engine(make_model(vocab_size=VOCAB), tiny_tokenizer, adapters=adapters)
    names = (
        [None, "one", "two", "one*0.5", "one + two"]
        if variant == "road_1"
        else [None, "one", "two", "-one", "one + two"]
    )
    requests = [Request(prompt=prompt(i, 3 + 11 * i), adapter=name, max_tokens=12) for i, name in enumerate(names)]
    answers = engine.generate(requests)
    expected = []
    for item, name, answer in zip(requests, names, answers, strict=True):
        adapter = meaning(name, adapters)
        assert isinstance(item.prompt, list)
        assert_greedy(plain, adapter, item.prompt, answer)  # type: ignore[arg-type]
        expected.append(generate(plain, adapter, item.prompt, 12))  # type: ignore[arg-type]
        assert answer.prompt_tokens == len(item.prompt)
    assert [answer.token_ids for answer in answers] == expected
    assert len({tuple(tokens) for tokens in expected}) == 5, "all answers are alike, so this test shows little"


def test_long_requests_beyond_the_sliding_window(tiny_gemma, tiny_tokenizer, random_adapter):
    plain = tiny_gemma(vocab_size=VOCAB)
    adapter = random_adapter(plain, 1)
    engine = Engine(tiny_gemma(vocab_size=VOCAB), tiny_tokenizer, adapters={"a": adapter})
    requests = [
        Request(prompt=prompt(i, 60 + i), adapter=("a", None)[i], max_tokens=60, ignore_eos=True) for i in (0, 1)
    ]
    for i, answer in enumerate(engine.generate(requests)):
        assert_greedy(plain, (adapter, None)[i], prompt(i, 60 + i), answer)


def test_logprobs_are_those_of_plain_transformers(make, tiny_llama, adapters):
    requests = [
        Request(prompt=prompt(i, 5 + 8 * i), adapter=name, max_tokens=6, logprobs=i, prompt_logprobs=2, ignore_eos=True)
        for i, name in enumerate(NAMES)
    ]
    plain = tiny_llama(vocab_size=VOCAB)
    for i, (item, answer) in enumerate(zip(requests, make().generate(requests), strict=True)):
        ids = [*prompt(i, 5 + 8 * i), *answer.token_ids]
        table = forward(plain, meaning(item.adapter, adapters), ids).log_softmax(dim=-1)
        assert answer.prompt_logprobs is not None
        assert answer.logprobs is not None
        assert answer.prompt_logprobs[0] is None
        entries = [*answer.prompt_logprobs[1:], *answer.logprobs]
        assert [entry.token_id for entry in entries] == ids[1:]
        close_to([entry.logprob for entry in entries], [float(table[at, token]) for at, token in enumerate(ids[1:])])
        assert [len(entry.top) for entry in entries] == [2] * (4 + 8 * i) + [i] * 6
        for entry, row in zip(entries, table, strict=False):
            if entry.top:
                close_to([value for _, value in entry.top], row.topk(len(entry.top)).values)


def test_logprobs_are_the_models_own_whatever_the_sampling(make, tiny_llama):
    options = {"temperature": 3.0, "top_k": 5, "repetition_penalty": 1.7, "min_tokens": 4, "seed": 1}
    (answer,) = make().generate([Request(prompt=prompt(0), max_tokens=6, logprobs=0, **options)])
    table = forward(tiny_llama(vocab_size=VOCAB), None, prompt(0) + answer.token_ids).log_softmax(dim=-1)
    expected = [float(table[8 + at, token]) for at, token in enumerate(answer.token_ids)]
    assert answer.logprobs is not None
    close_to([entry.logprob for entry in answer.logprobs], expected)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
        ({"min_tokens": 10}, {"min_new_tokens": 10}),
        (
            {"repetition_penalty": 0.8, "no_repeat_ngram_size": 3},
            {"repetition_penalty": 0.8, "no_repeat_ngram_size": 3},
        ),
    ],
)
def test_constraints_are_transformers(make, tiny_llama, adapters, ours, theirs):
    plain = tiny_llama(vocab_size=VOCAB)
    requests = [Request(prompt=prompt(i), adapter=name, max_tokens=16, **ours) for i, name in enumerate(NAMES)]
    answers = [answer.token_ids for answer in make().generate(requests)]
    assert answers == [generate(plain, meaning(n, adapters), prompt(i), 16, **theirs) for i, n in enumerate(NAMES)]


def test_engine_without_fused_kernels_gives_the_same(make, tiny_llama, adapters, monkeypatch):
    requests = [Request(prompt=prompt(i, 30), adapter=name, max_tokens=8, logprobs=0) for i, name in enumerate(NAMES)]
    expected = make().generate(requests)
    monkeypatch.setattr(native, "load", lambda: None)
    monkeypatch.setattr("roadkit.kernels.rows.backend_for", lambda device: "torch")
    engine = make()
    assert not engine.runner.packed
    answers = engine.generate(requests)
    plain = tiny_llama(vocab_size=VOCAB)
    for i, (answer, wanted) in enumerate(zip(answers, expected, strict=True)):
        assert_greedy(plain, meaning(NAMES[i], adapters), prompt(i, 30), answer)
        assert answer.token_ids == wanted.token_ids


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_models_answer(make, tiny_llama, dtype):
    engine = make(model=tiny_llama(vocab_size=VOCAB).to(dtype))
    answers = engine.generate([Request(prompt=prompt(i), adapter=name, max_tokens=8) for i, name in enumerate(NAMES)])
    assert all(answer.finish_reason in ("length", "stop") for answer in answers)


def test_alone_or_together_is_the_same(make):
    requests = [
        Request(
            prompt=prompt(i, 5 + 13 * i), adapter=name, max_tokens=10, logprobs=1, temperature=(0, 0.9)[i % 2], seed=i
        )
        for i, name in enumerate(NAMES)
    ]
    together = make().generate(requests)
    for item, expected in zip(requests, together, strict=True):
        assert_same(make().generate([item]), [expected])
    assert_same(make().generate(requests[::-1])[::-1], together)
    assert_same(make(max_batch=2).generate(requests), together)


# ---- scheduling changes no answer -------------------------------------------------------------------------------


@pytest.mark.parametrize(("chunk", "burst"), [(1, 1), (7, 7), (16, 40)])
def test_chunked_prefill_is_whole_prefill(make, chunk, burst):
    requests = [Request(prompt=prompt(i, 10 + 30 * i), adapter=name, max_tokens=6) for i, name in enumerate(NAMES[:4])]
    expected, engine = make().generate(requests), make()
    engine.scheduler.chunk, engine.scheduler.burst = chunk, burst
    assert_same(engine.generate(requests), expected)


def preemptions(engine: Engine, monkeypatch) -> list:
    seen, preempt = [], engine.scheduler._preempt
    monkeypatch.setattr(engine.scheduler, "_preempt", lambda sequence: (seen.append(sequence), preempt(sequence)))
    return seen


def test_preemption_changes_no_answer(make, monkeypatch):
    options = {"max_tokens": 40, "ignore_eos": True, "logprobs": 0, "prompt_logprobs": 1}
    requests = [
        Request(prompt=prompt(i, 20), adapter=name, temperature=(0, 0.8)[i % 2], seed=i, **options)
        for i, name in enumerate(NAMES)
    ]
    expected, engine = make().generate(requests), make(cache_gib=9 * PAGE_BYTES / 2**30)
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


def test_preempted_request_keeps_its_version_of_an_adapter(make, adapters, tiny_llama, monkeypatch):
    engine = make(cache_gib=5 * PAGE_BYTES / 2**30)
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


def test_beginnings_are_reused_and_change_no_answer(make, tiny_llama, adapters):
    plain, engine = tiny_llama(vocab_size=VOCAB), make()
    beginning = prompt(0, 50)
    for name, cached in (("one", 0), ("one", 48), ("two", 0), (None, 0), ("one*0.5", 0), ("one*0.50", 48), (None, 48)):
        item = Request(prompt=[*beginning, *prompt(len(str(name)), 4)], adapter=name, max_tokens=5)
        (answer,) = engine.generate([item])
        assert answer.cached_tokens == cached, name
        assert_greedy(plain, meaning(name, adapters), list(item.prompt), answer)  # type: ignore[arg-type]


def test_beginnings_of_an_older_version_are_not_reused(make, tmp_path, adapters, tiny_llama):
    adapters["one"].save(tmp_path / "a")
    engine, plain = make(adapters={"a": tmp_path / "a", "same": adapters["one"]}), tiny_llama(vocab_size=VOCAB)
    item = Request(prompt=prompt(0, 50), adapter="a", max_tokens=4)
    assert engine.generate([item])[0].cached_tokens == 0
    assert engine.generate([item.model_copy(update={"adapter": "same"})])[0].cached_tokens == 48, "equal content"
    adapters["two"].save(tmp_path / "a")
    engine.add_adapter("a", tmp_path / "a")
    (answer,) = engine.generate([item])
    assert answer.cached_tokens == 0
    assert_greedy(plain, adapters["two"], prompt(0, 50), answer)


def test_more_adapters_than_slots_queue(make, tiny_llama, random_adapter):
    plain = tiny_llama(vocab_size=VOCAB)
    many = {f"a{i}": random_adapter(plain, i, layers=("mlp",)) for i in range(7)}
    engine = make(adapters=many, slots=2, max_batch=4)
    requests = [Request(prompt=prompt(i), adapter=f"a{i % 7}", max_tokens=5) for i in range(21)]
    for i, answer in enumerate(engine.generate(requests)):
        assert_greedy(plain, many[f"a{i % 7}"], prompt(i), answer)


def test_adapters_of_different_layers_and_group_sizes_serve_together(make, tiny_llama, random_adapter):
    """Widths are 32, 64 and 128: a group size of 128 fits some layers only."""
    plain = tiny_llama(vocab_size=VOCAB)
    kinds = {
        "mlp": random_adapter(plain, 1, layers=("up_proj", "gate_proj"), group_size=128),
        "keys": random_adapter(plain, 2, layers=("k_proj", "v_proj"), group_size=32, variant="road_4"),
        "all": random_adapter(plain, 3, group_size=2, variant="road_2"),
    }
    for order in (["mlp", "keys", "all"], ["all", "keys", "mlp"]):
        engine = make(adapters={name: kinds[name] for name in order})
        requests = [
            Request(prompt=prompt(i, 9 + i), adapter=name, max_tokens=8) for i, name in enumerate([*order, None])
        ]
        for i, answer in enumerate(engine.generate(requests)):
            assert_greedy(plain, kinds.get([*order, None][i]), prompt(i, 9 + i), answer)


# ---- ends -------------------------------------------------------------------------------------------------------


def test_ends_at_the_end_token_which_stays_out_of_the_text(make, tiny_tokenizer):
    (whole,) = make().generate([Request(prompt=prompt(0), max_tokens=20, ignore_eos=True)])
    token = whole.token_ids[7]
    at = whole.token_ids.index(token)
    item = Request(prompt=prompt(0), max_tokens=20, stop_token_ids=(token,))
    (answer,) = make().generate([item])
    assert answer.finish_reason == "stop"
    assert answer.token_ids == whole.token_ids[: at + 1]
    assert answer.text == tiny_tokenizer.decode(whole.token_ids[:at], skip_special_tokens=True)


def test_min_tokens_and_ignore_eos_put_the_end_off(make):
    model_ends = {}
    engine = make()
    (whole,) = engine.generate([Request(prompt=prompt(0), max_tokens=20, ignore_eos=True)])
    model_ends = {"stop_token_ids": (whole.token_ids[3],)}
    requests = [
        Request(prompt=prompt(0), max_tokens=20, min_tokens=10, **model_ends),
        Request(prompt=prompt(0), max_tokens=20, ignore_eos=True, **model_ends),
    ]
    late, never = engine.generate(requests)
    assert len(late.token_ids) >= 10
    assert whole.token_ids[3] not in late.token_ids[:10]
    assert (len(never.token_ids), never.finish_reason) == (20, "length")


def test_stop_strings_across_token_borders(make):
    engine = make()
    (whole,) = engine.generate([Request(prompt=prompt(2), adapter="two", max_tokens=30, ignore_eos=True)])
    text = whole.text
    for start in range(3, len(text) - 3, 5):
        stop = text[start : start + 3]
        item = Request(prompt=prompt(2), adapter="two", max_tokens=30, ignore_eos=True, stop=("never there", stop))
        (answer,) = engine.generate([item])
        assert answer.finish_reason == "stop"
        assert answer.text == text[: text.find(stop)]
        assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
        assert len(answer.token_ids) < 30 or text.endswith(stop)
    (answer,) = engine.generate(
        [Request(prompt=prompt(2), adapter="two", max_tokens=30, ignore_eos=True, stop=text[4])]
    )
    assert answer.text == text[: text.find(text[4])]


def test_seed_decides_and_the_batch_does_not(make):
    options = {"max_tokens": 12, "temperature": 1.5, "top_p": 0.95, "ignore_eos": True}
    items = [Request(prompt=prompt(0), adapter="one", seed=seed, **options) for seed in (1, 2, 1)]
    first, second, same = make().generate(items)
    assert first.token_ids == same.token_ids != second.token_ids
    others = [Request(prompt=prompt(i, 20), adapter=NAMES[i % 6], **options) for i in range(1, 6)]
    assert make().generate([*others, items[1]])[-1].token_ids == second.token_ids
    unseeded = make().generate([Request(prompt=prompt(0), **options) for _ in range(2)])
    assert unseeded[0].token_ids != unseeded[1].token_ids


# ---- streams ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [(), ("the", "q")])
def test_chunks_add_up_to_the_completion(make, stop):
    for i, name in enumerate(NAMES):
        item = Request(prompt=prompt(i), adapter=name, max_tokens=15, logprobs=1, stop=stop, temperature=1.0, seed=i)
        chunks = list(make().stream(item))
        completion = chunks[-1].completion
        assert completion is not None
        assert all(chunk.completion is None for chunk in chunks[:-1])
        assert "".join(chunk.text for chunk in chunks) == completion.text
        assert [token for chunk in chunks for token in chunk.token_ids] == completion.token_ids
        assert [entry for chunk in chunks for entry in chunk.logprobs] == completion.logprobs
        assert_same([completion], make().generate([item]))


@pytest.mark.parametrize("reason", ["cancelled", "error"])
def test_chunks_add_up_when_it_ends_early(make, reason, monkeypatch):
    engine = make()
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


def test_a_stream_may_be_asked_again(make):
    stream = make().submit(Request(prompt=prompt(0), max_tokens=3, ignore_eos=True))
    for _ in stream:
        pass
    assert stream.result() is stream.result()
    assert list(stream) == []


def test_leaving_a_stream_early_cancels(make):
    engine = make()
    for chunk in engine.stream(Request(prompt=prompt(0), max_tokens=50, ignore_eos=True)):
        assert chunk.completion is None
        break
    assert not engine.scheduler.running
    assert not engine.step()


def nothing_held(engine: Engine) -> bool:
    cache = engine.scheduler.cache
    idle = not engine.scheduler.running and not engine.scheduler.waiting
    return idle and cache.num_free == cache.num_pages and not engine.bank.num_held


def test_cancelling_frees_row_and_pages_within_a_step(make):
    engine = make(max_batch=2)
    items = [Request(prompt=prompt(i, 40), adapter=NAMES[i], max_tokens=20, ignore_eos=True) for i in range(4)]
    expected = make().generate(items)
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


def test_interrupted_generate_leaves_nothing_running(make, monkeypatch):
    engine = make()
    step, count = engine.runner.step, iter(range(100))

    def interrupted(batch, bank):
        if next(count) == 3:
            raise KeyboardInterrupt
        return step(batch, bank)

    monkeypatch.setattr(engine.runner, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate([Request(prompt=prompt(i), adapter="one", max_tokens=9, ignore_eos=True) for i in range(3)])
    assert nothing_held(engine)


def test_threads_share_an_engine(make):
    engine = make(max_batch=3)
    items = [Request(prompt=prompt(i), adapter=NAMES[i % 6], max_tokens=8) for i in range(9)]
    expected, answers = make().generate(items), [None] * 9

    def ask(i: int) -> None:
        answers[i] = engine.generate([items[i]])[0]  # type: ignore[call-overload]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert_same(answers, expected)  # type: ignore[arg-type]
    assert nothing_held(engine)


def test_full_queue_refuses_and_generate_waits(make):
    engine = make(max_batch=1, max_waiting=2)
    items = [Request(prompt=prompt(i), max_tokens=2, ignore_eos=True) for i in range(7)]
    streams = [engine.submit(item) for item in items[:2]]
    with pytest.raises(QueueFull, match="2 requests are waiting, at most 2 may; try again later"):
        engine.submit(items[2])
    answers = engine.generate(items)
    assert [answer.finish_reason for answer in answers] == ["length"] * 7
    assert_same(answers[:2], [stream.result() for stream in streams])


# ---- one request's trouble is its own ---------------------------------------------------------------------------


def trouble(tmp_path, adapters) -> dict:
    """Request settings that cannot be served, with a part of the message."""
    (tmp_path / "empty").mkdir()
    adapters["one"].save(tmp_path / "cut")
    weights = tmp_path / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    layer = "model.layers.0.mlp.up_proj"
    wide = Adapter.from_parameters({layer: random_parameters("road_1", 64, 2)}, variant="road_1", group_size=2)
    wide.save(tmp_path / "wide")
    theta, alpha = random_parameters("road_1", 128, 2)
    huge = Adapter.from_parameters({layer: (theta, 1e38 * alpha)}, variant="road_1", group_size=2)
    lm_head = Adapter.from_parameters(
        {"lm_head": random_parameters("road_1", VOCAB, 2)}, variant="road_1", group_size=2
    )
    heads = {"lm_head": {"weight": torch.zeros(VOCAB, 64)}}
    own_head = Adapter.from_parameters({layer: (theta, alpha)}, variant="road_1", group_size=2, heads=heads)
    adapters |= {"cut": tmp_path / "cut", "empty": tmp_path / "empty", "gone": str(tmp_path / "gone")}
    adapters |= {"wide": tmp_path / "wide", "huge": huge, "lm_head": lm_head, "own_head": own_head}
    return {
        "no adapter 'tow'; did you mean 'two'?": {"adapter": "tow"},
        "expected an adapter name at position 6": {"adapter": "one + "},
        "strength 9 at position 4 is too large": {"adapter": "one*9"},
        "do not compose: model.layers.0.mlp.up_proj: group_size": {"adapter": "one + huge"},
        "truncated or corrupt": {"adapter": "cut"},
        "adapter_config.json is missing": {"adapter": "empty"},
        "no such directory": {"adapter": "gone"},
        "up_proj: adapter is 64 wide, layer 128": {"adapter": "wide"},
        "logits are not finite with this adapter": {"adapter": "huge"},
        "lm_head cannot be rotated here": {"adapter": "lm_head"},
        "brings whole modules (lm_head)": {"adapter": "own_head"},
        "the prompt is empty": {"prompt": []},
        "token id 384 is outside the vocabulary of 384": {"prompt": [5, 384]},
        "token id -1 is outside the vocabulary of 384": {"prompt": [-1]},
        "the prompt has 600 tokens and max_tokens is 5, together at most 512 fit": {"prompt": prompt(0, 600)},
        "the model has no chat template": {"prompt": [{"role": "user", "content": "hi"}]},
    }


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_requests_that_cannot_be_served_leave_the_others_going(make, tmp_path, adapters, temperature):
    fine = [Request(prompt=prompt(i), adapter=name, max_tokens=8) for i, name in enumerate(NAMES)]
    expected = make().generate(fine)
    troubled = trouble(tmp_path, adapters)
    engine = make(adapters=adapters, slots=3)
    defaults = {"prompt": prompt(3), "max_tokens": 5, "temperature": temperature}
    requests = [Request(**defaults | settings) for settings in troubled.values()]
    answers = engine.generate([*requests[:8], *fine, *requests[8:]])
    assert_same(answers[8 : 8 + len(fine)], expected)
    for message, answer in zip(troubled, answers[:8] + answers[8 + len(fine) :], strict=True):
        assert answer.finish_reason == "error", message
        assert answer.error is not None
        assert message in answer.error
        assert not answer.token_ids
    assert nothing_held(engine)
    assert_same(engine.generate(fine), expected)


def test_submit_raises_what_generate_reports(make):
    engine = make()
    with pytest.raises(ExpressionError, match="no adapter 'three'"):
        engine.submit(Request(prompt=[5], adapter="three"))
    with pytest.raises(RequestError, match="the prompt is empty"):
        engine.submit(Request(prompt=""))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens: input should be greater than or equal to 1, got '0'"),
        ({"max_tokens": -5}, "max_tokens: input should be greater than or equal to 1"),
        ({"temperature": -0.1}, "temperature: input should be greater than or equal to 0"),
        ({"temperature": float("nan")}, "temperature: input should be"),
        ({"top_p": 0}, "top_p: input should be greater than 0"),
        ({"top_p": 1.1}, "top_p: input should be less than or equal to 1"),
        ({"top_k": 0}, "top_k: input should be greater than or equal to 1"),
        ({"min_p": 2}, "min_p: input should be less than or equal to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty: input should be greater than 0"),
        ({"logprobs": 101}, "logprobs: input should be less than or equal to 100"),
        ({"stop": ("a", "")}, "stop: an empty string would stop every text at once"),
        ({"min_tokens": 65}, "min_tokens 65 exceeds max_tokens 64"),
        ({"temprature": 1}, "unknown field 'temprature'; did you mean 'temperature'?"),
        ({"prompt": 5}, "prompt: "),
        ({"prompt": None}, "prompt: "),
        ({"prompt": ["a"]}, "prompt"),
        ({"max_tokens": 0, "top_p": 0}, "; top_p"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(RequestError) as caught:
        Request(**{"prompt": "hi"} | options)
    assert message in str(caught.value)


def test_prompt_is_needed():
    with pytest.raises(RequestError, match="prompt is missing"):
        Request(max_tokens=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("bad", [10**6, -1])
def test_end_tokens_outside_the_vocabulary_do_no_harm(make, bad):
    item = Request(prompt=prompt(0), max_tokens=3, min_tokens=1, stop_token_ids=(bad,))
    assert make().generate([item])[0].finish_reason in ("length", "stop")


def test_more_alternatives_than_tokens_are_all_of_them(tiny_llama, tiny_tokenizer):
    engine = Engine(tiny_llama(vocab_size=20), tiny_tokenizer)
    (answer,) = engine.generate([Request(prompt=[5, 6], max_tokens=2, logprobs=100, ignore_eos=True)])
    assert answer.logprobs is not None
    assert len(answer.logprobs[0].top) == 20


@pytest.mark.parametrize("where", ["step", "sample", "detokenizer"])
def test_a_failing_step_fails_its_requests_and_the_engine_lives_on(make, monkeypatch, caplog, where):
    engine = make()
    items = [Request(prompt=prompt(i), adapter=NAMES[i], max_tokens=4, ignore_eos=True) for i in range(3)]
    expected = engine.generate(items)

    def fail(*_, **__):
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        if where == "step":
            patch.setattr(engine.runner.model, "forward", fail)
        elif where == "sample":
            patch.setattr("roadkit.engine.engine.sample", fail)
        else:
            patch.setattr("roadkit.engine.text.Detokenizer.push", fail)
        answers = engine.generate(items)
    assert [(answer.finish_reason, answer.error) for answer in answers] == [("error", "RuntimeError: out of luck")] * 3
    assert "a step failed" in caplog.text
    assert nothing_held(engine)
    assert_same(engine.generate(items), expected)


def test_adapter_removed_while_requests_wait_and_run(make, adapters, tiny_llama):
    engine = make(max_batch=1)
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


def test_new_version_serves_new_requests_and_running_ones_keep_theirs(make, adapters, tiny_llama):
    engine, plain = make(), tiny_llama(vocab_size=VOCAB)
    old = engine.submit(Request(prompt=prompt(0), adapter="one", max_tokens=10, ignore_eos=True))
    for _ in range(3):
        engine.step()
    engine.add_adapter("one", adapters["two"])
    new = engine.submit(Request(prompt=prompt(0), adapter="one", max_tokens=10, ignore_eos=True))
    assert_greedy(plain, adapters["two"], prompt(0), new.result())
    assert_greedy(plain, adapters["one"], prompt(0), old.result())


def test_directory_that_disappears_is_its_requests_trouble(make, adapters, tmp_path):
    adapters["one"].save(tmp_path / "a")
    engine = make(adapters={"a": tmp_path / "a", "two": adapters["two"]})
    shutil.rmtree(tmp_path / "a")
    bad, good = engine.generate(
        [Request(prompt=prompt(i), adapter=name, max_tokens=3) for i, name in enumerate(("a", "two"))]
    )
    assert "no such directory" in str(bad.error)
    assert good.finish_reason != "error"


# ---- building ---------------------------------------------------------------------------------------------------


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
    for options, device, dtype in (
        ({}, "meta", torch.bfloat16),
        ({"weights": "float32"}, "meta", torch.float32),
        ({"dtype": torch.float16}, "meta", torch.float16),
        ({"device": "cpu"}, "cpu", torch.float32),
    ):
        engine = Engine.from_pretrained(folder, **options)
        model = engine.runner.model
        assert (model.device.type, model.dtype, engine.bank.device.type) == (device, dtype, device), options
        few = Engine.from_pretrained(folder, **options, max_batch=64, cache_gib=64 * PAGE_BYTES / 2**30)
        assert few.scheduler.cache.num_pages == 64 * 4 // dtype.itemsize, "16-bit numbers take half the room"
    with pytest.raises(
        ModelError, match="weights='int8' is what the CPU packs, and the model is torch.bfloat16 on meta"
    ):
        Engine.from_pretrained(folder, weights="int8")


def test_chat_messages_go_through_the_template(make, tiny_tokenizer, monkeypatch):
    template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
    engine, messages = make(), [{"role": "user", "content": "the fox"}]
    asked, told = engine.generate(
        [Request(prompt=item, max_tokens=5) for item in (messages, "user: the fox\nassistant:")]
    )
    assert_same([asked], [told])
    (refused,) = engine.generate([Request(prompt=[{"role": "tool", "content": ""}])])
    assert "the model's chat template refuses these messages: no tools" in str(refused.error)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_batch": 0}, RequestError, "max_batch: input should be greater than or equal to 1, got '0'"),
        ({"cache_gib": 1e-9}, RequestError, r"cache_gib 1e-09 holds no page: one needs 8192 bytes"),
        ({"adapters": {"a b": "x/y"}}, AdapterError, "'a b' is no adapter name"),
        ({"adapters": {"a": "nowhere"}}, AdapterError, "adapter 'a': no such directory: nowhere"),
    ],
)
def test_impossible_engines_are_refused(make, options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


def test_encoders_are_refused(tiny_bert, tiny_tokenizer):
    with pytest.raises(ModelError, match=r"BertModel has no language-model head to generate with"):
        Engine(tiny_bert(), tiny_tokenizer)


def test_context_is_bounded_by_model_option_and_cache(make):
    for options, longest in (({}, 512), ({"max_context": 100}, 100), ({"cache_gib": 4 * PAGE_BYTES / 2**30}, 64)):
        engine = make(**options)
        assert engine.max_context == longest  # what a server may give to a request that names no number
        fits = Request(prompt=prompt(0, longest - 2), max_tokens=2, ignore_eos=True)
        assert engine.generate([fits])[0].finish_reason == "length"
        with pytest.raises(RequestError, match=f"together at most {longest} fit the context"):
            engine.submit(Request(prompt=prompt(0, longest - 1), max_tokens=2))
