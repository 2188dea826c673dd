from __future__ import annotations

import pytest

from roadkit.engine.engine import Engine
from tests.engine.plain import VOCAB


@pytest.fixture
def adapters(tiny_llama, random_adapter):
    """Two adapters for tiny_llama, and what the names of `NAMES` mean."""
    one, two = (random_adapter(tiny_llama(vocab_size=VOCAB), seed, layers=("proj",)) for seed in (1, 2))
    return {"one": one, "two": two}


@pytest.fixture
def make_engine(tiny_llama, tiny_tokenizer, adapters):
    """An engine on tiny_llama with both adapters; options override."""

    def build(**options) -> Engine:
        model = options.pop("model", None) or tiny_llama(vocab_size=VOCAB)
        return Engine(model, tiny_tokenizer, **{"adapters": adapters, "max_batch": 8} | options)

    return build
