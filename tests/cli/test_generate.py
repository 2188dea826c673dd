"""`roadkit generate` on the real model."""

import json

import pytest

from roadkit.cli import app


@pytest.mark.model
def test_generate_answers_every_prompt_with_every_adapter(runner):
    arguments = ["generate", "The capital of France is", "--raw", "--max-tokens", "3", "--adapter", "base", "--json"]
    answers = json.loads(runner.invoke(app, arguments).stdout.splitlines()[-1])["answers"]
    assert [answer["adapter"] for answer in answers] == ["base"]
    assert "Paris" in answers[0]["text"]
