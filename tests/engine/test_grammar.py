"""JSON-constrained answers parse and satisfy their schema, whatever the model would rather say."""

import json

import pytest
import torch

from roadkit.engine.grammar import Grammars
from roadkit.errors import RequestError

SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 20}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer():
    from roadkit import models

    return models.load_tokenizer("smollm2")


@pytest.mark.model
def test_random_logits_under_the_mask_make_valid_json(tokenizer):
    grammar = Grammars(tokenizer, len(tokenizer)).json(SCHEMA)
    tokens: list[int] = []
    while not grammar.complete:
        row = torch.randn(len(tokenizer))
        grammar.mask(row)
        token = int(row.argmax())
        grammar.accept(token)
        tokens.append(token)
        assert len(tokens) < 200
    answer = json.loads(tokenizer.decode(tokens, skip_special_tokens=True))
    assert answer.keys() == {"answer", "sure"} and isinstance(answer["sure"], bool) and len(answer["answer"]) <= 20


@pytest.mark.model
def test_a_schema_that_cannot_be_followed_is_refused(tokenizer):
    with pytest.raises(RequestError, match="json_schema cannot be followed"):
        Grammars(tokenizer, len(tokenizer)).json({"type": "no such type"})


@pytest.mark.model
def test_the_engine_answers_in_json_beside_free_text():
    from roadkit.engine.engine import Engine
    from roadkit.engine.request import Request

    engine = Engine.from_pretrained("smollm2", max_batch=2)
    prompt = [{"role": "user", "content": "What is the capital of Italy?"}]
    free, bound = engine.generate(
        [Request(prompt=prompt, max_tokens=24), Request(prompt=prompt, max_tokens=60, json_schema=SCHEMA)]
    )
    assert json.loads(bound.text).keys() == {"answer", "sure"} and bound.finish_reason == "stop"
    assert free.token_ids == engine.generate([Request(prompt=prompt, max_tokens=24)])[0].token_ids
