"""Where an answer ends: end tokens, stop strings, lengths."""

from __future__ import annotations

import pytest

from roadkit.engine.request import Request
from tests.engine.plain import (
    prompt,
)


def test_ends_at_the_end_token_which_stays_out_of_the_text(make_engine, tiny_tokenizer):
    (whole,) = make_engine().generate([Request(prompt=prompt(0), max_tokens=20, ignore_eos=True)])
    token = whole.token_ids[7]
    at = whole.token_ids.index(token)
    item = Request(prompt=prompt(0), max_tokens=20, stop_token_ids=(token,))
    (answer,) = make_engine().generate([item])
    assert answer.finish_reason == "stop"
    assert answer.token_ids == whole.token_ids[: at + 1]
    assert answer.text == tiny_tokenizer.decode(whole.token_ids[:at], skip_special_tokens=True)


def test_min_tokens_and_ignore_eos_put_the_end_off(make_engine):
    model_ends = {}
    engine = make_engine()
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


def test_stop_strings_across_token_borders(make_engine):
    engine = make_engine()
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


@pytest.mark.parametrize("bad", [10**6, -1])
def test_end_tokens_outside_the_vocabulary_do_no_harm(make_engine, bad):
    item = Request(prompt=prompt(0), max_tokens=3, min_tokens=1, stop_token_ids=(bad,))
    assert make_engine().generate([item])[0].finish_reason in ("length", "stop")
