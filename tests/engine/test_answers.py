"""Every request of a mixed batch is answered as plain transformers answers it with its adapter attached."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from roadkit.engine.engine import Engine
from roadkit.engine.request import Request
from roadkit.kernels import native
from tests.conftest import SIZES, TOKENS
from tests.engine.plain import (
    NAMES,
    VOCAB,
    assert_greedy,
    assert_same,
    close_to,
    forward,
    generate,
    meaning,
    prompt,
)


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


def test_models_that_keep_their_options_to_themselves_are_served(tiny_tokenizer):
    """Nemotron's layers hand down to attention what they know, and nothing else of what their caller gave."""
    from transformers import NemotronConfig, NemotronForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = SIZES | TOKENS | {"vocab_size": VOCAB, "intermediate_size": 64, "num_key_value_heads": 2}
    config = NemotronConfig(**sizes)
    model = NemotronForCausalLM(config).eval()
    prompts = [prompt(i, 3 + 5 * i) for i in range(3)]
    expected = [generate(model, None, ids, 8) for ids in prompts]
    answers = Engine(model, tiny_tokenizer).generate([Request(prompt=ids, max_tokens=8) for ids in prompts])
    assert [answer.token_ids for answer in answers] == expected


def test_long_requests_beyond_the_sliding_window(tiny_gemma, tiny_tokenizer, random_adapter):
    plain = tiny_gemma(vocab_size=VOCAB)
    adapter = random_adapter(plain, 1)
    engine = Engine(tiny_gemma(vocab_size=VOCAB), tiny_tokenizer, adapters={"a": adapter})
    requests = [
        Request(prompt=prompt(i, 60 + i), adapter=("a", None)[i], max_tokens=60, ignore_eos=True) for i in (0, 1)
    ]
    for i, answer in enumerate(engine.generate(requests)):
        assert_greedy(plain, (adapter, None)[i], prompt(i, 60 + i), answer)


def test_logprobs_are_those_of_plain_transformers(make_engine, tiny_llama, adapters):
    requests = [
        Request(prompt=prompt(i, 5 + 8 * i), adapter=name, max_tokens=6, logprobs=i, prompt_logprobs=2, ignore_eos=True)
        for i, name in enumerate(NAMES)
    ]
    plain = tiny_llama(vocab_size=VOCAB)
    for i, (item, answer) in enumerate(zip(requests, make_engine().generate(requests), strict=True)):
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


def test_logprobs_are_the_models_own_whatever_the_sampling(make_engine, tiny_llama):
    options = {"temperature": 3.0, "top_k": 5, "repetition_penalty": 1.7, "min_tokens": 4, "seed": 1}
    (answer,) = make_engine().generate([Request(prompt=prompt(0), max_tokens=6, logprobs=0, **options)])
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
def test_constraints_are_transformers(make_engine, tiny_llama, adapters, ours, theirs):
    plain = tiny_llama(vocab_size=VOCAB)
    requests = [Request(prompt=prompt(i), adapter=name, max_tokens=16, **ours) for i, name in enumerate(NAMES)]
    answers = [answer.token_ids for answer in make_engine().generate(requests)]
    assert answers == [generate(plain, meaning(n, adapters), prompt(i), 16, **theirs) for i, n in enumerate(NAMES)]


def test_engine_without_fused_kernels_gives_the_same(make_engine, tiny_llama, adapters, monkeypatch):
    requests = [Request(prompt=prompt(i, 30), adapter=name, max_tokens=8, logprobs=0) for i, name in enumerate(NAMES)]
    expected = make_engine().generate(requests)
    monkeypatch.setattr(native, "load", lambda: None)
    monkeypatch.setattr("roadkit.kernels.rows.backend_for", lambda device: "torch")
    engine = make_engine()
    assert not engine.runner.packed
    answers = engine.generate(requests)
    plain = tiny_llama(vocab_size=VOCAB)
    for i, (answer, wanted) in enumerate(zip(answers, expected, strict=True)):
        assert_greedy(plain, meaning(NAMES[i], adapters), prompt(i, 30), answer)
        assert answer.token_ids == wanted.token_ids


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_models_answer(make_engine, tiny_llama, dtype):
    engine = make_engine(model=tiny_llama(vocab_size=VOCAB).to(dtype))
    answers = engine.generate([Request(prompt=prompt(i), adapter=name, max_tokens=8) for i, name in enumerate(NAMES)])
    assert all(answer.finish_reason in ("length", "stop") for answer in answers)


def test_alone_or_together_is_the_same(make_engine):
    requests = [
        Request(
            prompt=prompt(i, 5 + 13 * i), adapter=name, max_tokens=10, logprobs=1, temperature=(0, 0.9)[i % 2], seed=i
        )
        for i, name in enumerate(NAMES)
    ]
    together = make_engine().generate(requests)
    for item, expected in zip(requests, together, strict=True):
        assert_same(make_engine().generate([item]), [expected])
    assert_same(make_engine().generate(requests[::-1])[::-1], together)
    assert_same(make_engine(max_batch=2).generate(requests), together)


def test_seed_decides_and_the_batch_does_not(make_engine):
    options = {"max_tokens": 12, "temperature": 1.5, "top_p": 0.95, "ignore_eos": True}
    items = [Request(prompt=prompt(0), adapter="one", seed=seed, **options) for seed in (1, 2, 1)]
    first, second, same = make_engine().generate(items)
    assert first.token_ids == same.token_ids != second.token_ids
    others = [Request(prompt=prompt(i, 20), adapter=NAMES[i % 6], **options) for i in range(1, 6)]
    assert make_engine().generate([*others, items[1]])[-1].token_ids == second.token_ids
    unseeded = make_engine().generate([Request(prompt=prompt(0), **options) for _ in range(2)])
    assert unseeded[0].token_ids != unseeded[1].token_ids


def test_chat_messages_go_through_the_template(make_engine, tiny_tokenizer, monkeypatch):
    template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
    engine, messages = make_engine(), [{"role": "user", "content": "the fox"}]
    asked, told = engine.generate(
        [Request(prompt=item, max_tokens=5) for item in (messages, "user: the fox\nassistant:")]
    )
    assert_same([asked], [told])
    (refused,) = engine.generate([Request(prompt=[{"role": "tool", "content": ""}])])
    assert "the model's chat template refuses these messages: no tools" in str(refused.error)


def test_more_alternatives_than_tokens_are_all_of_them(tiny_llama, tiny_tokenizer):
    engine = Engine(tiny_llama(vocab_size=20), tiny_tokenizer)
    (answer,) = engine.generate([Request(prompt=[5, 6], max_tokens=2, logprobs=100, ignore_eos=True)])
    assert answer.logprobs is not None
    assert len(answer.logprobs[0].top) == 20
