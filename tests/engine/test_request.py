"""Requests out of range are refused before an engine sees them."""

from __future__ import annotations

import pytest

from roadkit.engine.request import Request
from roadkit.errors import RequestError


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
