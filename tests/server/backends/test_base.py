"""The seam: each engine meets one of the protocols whole, and says which."""

import pytest

from roadkit.engine.engine import Engine
from roadkit.server.backends.base import (
    Backend,
    EncodingBackend,
    EncodingJob,
    GeneratingBackend,
    GenerationJob,
    TakesJobs,
    encodes,
    generates,
)
from roadkit.server.backends.embedded import EmbeddedBackend
from roadkit.server.backends.encoder import EncoderBackend
from roadkit.server.backends.vllm import VllmBackend
from tests.server.conftest import talking


def members(protocol: type) -> set[str]:
    """The names that a protocol asks for, with those of the protocols that it extends."""
    classes = [one for one in protocol.__mro__ if one.__module__ == Backend.__module__]
    named = {name for one in classes for name in (*vars(one), *vars(one).get("__annotations__", {}))}
    return {name for name in named if not name.startswith("_")}


def generator(backend: GeneratingBackend) -> TakesJobs[GenerationJob]:
    """For the type checker: what is given here meets the protocol."""
    return backend


def encoder(backend: EncodingBackend) -> TakesJobs[EncodingJob]:
    return backend


@pytest.mark.parametrize(("template", "abilities"), [(False, {"generate"}), (True, {"generate", "chat"})])
def test_a_decoder_generates_and_chats_if_it_has_a_template(tiny_llama, tiny_tokenizer, template, abilities):
    engine = Engine(tiny_llama(vocab_size=384), talking(tiny_tokenizer) if template else tiny_tokenizer)
    backend = EmbeddedBackend(engine)
    assert backend.abilities == abilities and generates(backend) and not encodes(backend)
    assert {name for name in members(GeneratingBackend) if not hasattr(backend, name)} == set()
    assert generator(backend) is backend


@pytest.mark.parametrize(("num_labels", "abilities"), [(None, {"embed"}), (3, {"embed", "classify"})])
def test_an_encoder_embeds_and_classifies_if_it_has_a_head(tiny_bert, tiny_tokenizer, num_labels, abilities):
    backend = EncoderBackend(tiny_bert(vocab_size=384, num_labels=num_labels), tiny_tokenizer)
    assert backend.abilities == abilities and encodes(backend) and not generates(backend)
    assert {name for name in members(EncodingBackend) if not hasattr(backend, name)} == set()
    assert encoder(backend) is backend


def test_vllm_generates():
    """vLLM itself is tested in tests/vllm; its backend has what the others have."""
    made_at_start = {"tokenizer", "max_context", "abilities"}
    assert {name for name in members(GeneratingBackend) if not hasattr(VllmBackend, name)} == made_at_start
