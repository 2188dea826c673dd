from __future__ import annotations

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as theirs

from roadkit.engine.request import Request
from roadkit.engine.sampler import _penalise, _uniform, sample
from roadkit.engine.sequence import TokenSequence

VOCAB = 24
quick = settings(max_examples=40)


def sequence(prompt=(1, 2, 3), generated=(), *, end_ids=(2,), seed=0, **options) -> TokenSequence:
    made = TokenSequence(
        id=0,
        request=Request(prompt=list(prompt), **options),
        terms=(),
        token_ids=list(prompt),
        seed=seed,
        end_ids=frozenset(end_ids),
    )
    made.token_ids += generated
    return made


def draws(logits: torch.Tensor, count: int = 3000, **options) -> torch.Tensor:
    """How often each token is drawn, by `count` requests with seeds of their own in one batch."""
    batch = [sequence(seed=seed, **options) for seed in range(count)]
    return torch.bincount(torch.tensor(sample(logits.expand(count, -1).clone(), batch)), minlength=len(logits)) / count


token_lists = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12)


# ---- penalties: exactly transformers' ---------------------------------------------------------------------------


@quick
@given(token_lists, st.floats(0.1, 3), st.integers(0, 1000))
def test_repetition_penalty_is_transformers(tokens, penalty, seed):
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed))
    expected = theirs.RepetitionPenaltyLogitsProcessor(penalty)(
        torch.LongTensor([tokens]), cast(torch.FloatTensor, logits.clone())
    )
    _penalise(logits, [sequence(tokens[:1], tokens[1:], repetition_penalty=penalty)])
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=0)


@quick
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 5))
def test_no_repeat_ngrams_are_transformers(tokens, size):
    logits = torch.randn(1, VOCAB)
    expected = theirs.NoRepeatNGramLogitsProcessor(size)(
        torch.LongTensor([tokens]), cast(torch.FloatTensor, logits.clone())
    )
    _penalise(logits, [sequence(tokens, no_repeat_ngram_size=size)])
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("generated", range(5))
def test_min_tokens_is_transformers(generated):
    tokens, logits = list(range(3, 6 + generated)), torch.randn(1, VOCAB)
    processor = theirs.MinNewTokensLengthLogitsProcessor(3, 3, [2, 7])
    expected = processor(torch.LongTensor([tokens]), cast(torch.FloatTensor, logits.clone()))
    _penalise(logits, [sequence(tokens[:3], tokens[3:], end_ids=(2, 7), min_tokens=3)])
    assert torch.equal(logits, expected)


def test_ended_sequences_never_end_where_that_is_ignored():
    logits = torch.zeros(1, VOCAB)
    logits[0, 2] = 100.0
    assert sample(logits.clone(), [sequence()]) == [2]
    assert sample(logits.clone(), [sequence(ignore_eos=True)]) != [2]


def test_each_row_has_its_own_settings():
    logits = torch.zeros(4, VOCAB)
    logits[:, 5], logits[:, 6] = 3.0, 2.9
    batch = [
        sequence((5,)),
        sequence((5,), repetition_penalty=2.0),
        sequence((5, 5), no_repeat_ngram_size=2),
        sequence((5,), end_ids=(5,), min_tokens=1),
    ]
    assert sample(logits, batch) == [5, 6, 6, 6]


# ---- drawing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.5},
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": 1000},
        {"top_p": 0.5},
        {"top_p": 0.9, "temperature": 1.7},
        {"top_p": 1e-6},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"top_k": 6, "top_p": 0.8, "min_p": 0.2, "temperature": 1.3},
        {"repetition_penalty": 1.5, "top_p": 0.7},
    ],
)
def test_draws_follow_transformers_distribution(options):
    options = {"temperature": 1.0} | options
    logits = 1.5 * torch.randn(VOCAB)
    processors: list[theirs.LogitsProcessor] = [
        theirs.RepetitionPenaltyLogitsProcessor(options.get("repetition_penalty", 1.0))
    ]
    processors.append(theirs.TemperatureLogitsWarper(options["temperature"]))
    if "top_k" in options:
        processors.append(theirs.TopKLogitsWarper(options["top_k"]))
    if "top_p" in options:
        processors.append(theirs.TopPLogitsWarper(options["top_p"]))
    if "min_p" in options:
        processors.append(theirs.MinPLogitsWarper(options["min_p"]))
    scores = logits.unsqueeze(0).clone()
    for processor in processors:
        scores = processor(torch.LongTensor([[1, 2, 3]]), cast(torch.FloatTensor, scores))
    expected = scores.softmax(dim=-1)[0]
    seen = draws(logits, **options)
    assert not seen[expected == 0].any(), "a token was drawn that transformers filters out"
    deviation = (expected * (1 - expected) / 3000).sqrt()
    assert ((seen - expected).abs() <= 5 * deviation + 1e-9).all()


def test_no_temperature_is_greedy_whatever_else_is_set():
    logits = torch.randn(5, VOCAB)
    expected = logits.argmax(dim=-1).tolist()
    batch = [sequence(seed=i, top_k=5, top_p=0.5, min_p=0.1) for i in range(5)]
    assert sample(logits, batch) == expected


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-6, 1e-3])
def test_hardly_any_temperature_is_nearly_greedy(temperature):
    logits = torch.randn(5, VOCAB) * 50
    expected = logits.argmax(dim=-1).tolist()
    assert sample(logits, [sequence(seed=i, temperature=temperature) for i in range(5)]) == expected


def test_a_draw_does_not_depend_on_the_batch():
    logits = torch.randn(64, VOCAB)
    options = [{"temperature": 0.5 + i / 40, "top_p": 0.99 - i / 200, "top_k": 1 + i % 9} for i in range(64)]
    batch = [sequence(seed=i, **option) for i, option in enumerate(options)]
    together = sample(logits.clone(), batch)
    for i in (0, 7, 63):
        assert sample(logits[i : i + 1].clone(), batch[i : i + 1]) == together[i : i + 1]
    assert sample(logits.flip(0).clone(), batch[::-1]) == together[::-1]


def test_a_draw_depends_on_seed_and_position():
    logits = torch.zeros(VOCAB)
    batch = [
        sequence((1,), range(position), seed=seed, temperature=1.0) for seed in range(20) for position in range(20)
    ]
    one, again = (sample(logits.expand(400, -1).clone(), batch) for _ in range(2))
    assert one == again
    counts = torch.bincount(torch.tensor(one), minlength=VOCAB)
    assert counts.min() > 0
    assert counts.max() < 45


@settings(max_examples=100)
@given(st.integers(-(2**70), 2**70), st.integers(0, 10**6))
def test_uniform_numbers_are_in_range_for_any_seed(seed, position):
    assert 0 <= _uniform(seed, position) < 1


def test_uniform_numbers_are_uniform():
    table = torch.tensor([[_uniform(seed, position) for position in range(100)] for seed in range(100)])
    assert abs(float(table.mean()) - 0.5) < 0.015
    assert torch.histc(table, 10).std() < 120
    correlation = torch.corrcoef(table)
    correlation.fill_diagonal_(0)
    assert correlation.abs().max() < 0.5, "neighbouring seeds give related numbers"
    assert torch.corrcoef(table.T).fill_diagonal_(0).abs().max() < 0.5


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_any_choice_does_not_disturb_the_others(value, temperature):
    """The engine ends such a request by itself; here it only must not raise."""
    logits = torch.randn(3, VOCAB)
    batch = [sequence(seed=i, temperature=temperature, top_p=0.9) for i in range(3)]
    expected = sample(logits.clone(), batch)
    logits[1] = value
    tokens = sample(logits, batch)
    assert (tokens[0], tokens[2]) == (expected[0], expected[2])
    assert 0 <= tokens[1] < VOCAB


def test_banned_tokens_are_never_drawn():
    logits = torch.zeros(VOCAB)
    seen = draws(logits, count=2000, temperature=1.0, min_tokens=1, end_ids=range(20))
    assert not seen[:20].any()
    assert (seen[20:] > 0.2).all()
