"""A decoder layer in one call gives the bits of its operators apart, and leaves to transformers what it doesn't know."""

from typing import Any

import pytest
import torch
from torch import nn

from roadkit.engine.cpu.layers import FusedLayer, fuse_layers
from roadkit.engine.engine import Engine
from roadkit.engine.request import Request
from roadkit.kernels import native

pytestmark = pytest.mark.skipif(native.load() is None, reason="no C compiler")
NAMES = ["one", None, "two*0.5", "one + two", "two"]


@pytest.fixture
def tiny_mistral():
    from transformers import MistralConfig, MistralForCausalLM

    def make(**changes):
        sizes: dict[str, Any] = {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        torch.manual_seed(0)
        return MistralForCausalLM(
            MistralConfig(intermediate_size=128, max_position_embeddings=512, sliding_window=16, **sizes | changes)
        ).eval()

    return make


@pytest.fixture
def calls(monkeypatch):
    """How many layers were computed in one call."""
    seen = []
    whole = FusedLayer.__call__

    def spy(self, *args, **options):
        before = self.plain
        seen.append(True)
        self.plain = lambda *a, **o: (seen.pop(), before(*a, **o))[1]
        try:
            return whole(self, *args, **options)
        finally:
            self.plain = before

    monkeypatch.setattr(FusedLayer, "__call__", spy)
    return seen


def requests(count: int = 5, length: int = 5, tokens: int = 12) -> list[Request]:
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 384, (length + 7 * i,), generator=generator).tolist() for i in range(count)]
    return [
        Request(prompt=prompt, adapter=NAMES[i], max_tokens=tokens, ignore_eos=True, logprobs=2)
        for i, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen", "tiny_mistral"])
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_the_same_bits_as_operators_apart(family, weights, request, tiny_tokenizer, random_adapter, monkeypatch, calls):
    make = request.getfixturevalue(family)
    plain = make(vocab_size=384)
    adapters = {"one": random_adapter(plain, 1), "two": random_adapter(plain, 2)}
    answers = {}
    for fused in (True, False):
        if not fused:
            assert len(calls) > 2 * 11, "no layer was computed in one call, so this test shows nothing"
            monkeypatch.setattr("roadkit.engine.cpu.fuse.fuse_layers", lambda *args: 0)
        model = make(vocab_size=384)
        engine = Engine(model, tiny_tokenizer, adapters=adapters, weights=weights)
        assert all(isinstance(layer.forward, FusedLayer) is fused for layer in model.model.layers)
        answers[fused] = engine.generate(requests())
    for whole, apart in zip(answers[True], answers[False], strict=True):
        assert whole.token_ids == apart.token_ids
        assert whole.logprobs == apart.logprobs


def test_a_window_of_mistral_reaches_every_token(tiny_mistral, tiny_tokenizer):
    plain = tiny_mistral(vocab_size=384)
    item = requests(1, length=60, tokens=30)[0]
    item = Request(prompt=item.prompt, max_tokens=30, ignore_eos=True)
    answer = Engine(tiny_mistral(vocab_size=384), tiny_tokenizer).generate([item])[0]
    ids = [*item.prompt, *answer.token_ids]
    with torch.no_grad():
        logits = plain(torch.tensor([ids])).logits[0, len(item.prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(answer.token_ids).unsqueeze(1)).squeeze(1)
    assert (logits.max(dim=1).values - chosen).max() < 1e-4


def test_hooks_on_a_part_are_called(tiny_llama, tiny_tokenizer, calls):
    model = tiny_llama(vocab_size=384)
    engine = Engine(model, tiny_tokenizer)
    calls.clear()  # of the probes
    seen = []
    handle = model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    engine.generate([Request(prompt=[5, 6, 7], max_tokens=4, ignore_eos=True)])
    assert len(seen) == 4 and len(calls) == 3, "layer 1 takes the plain way, layer 0 need not"
    handle.remove()
    engine.generate([Request(prompt=[5, 6, 7, 8], max_tokens=4, ignore_eos=True)])
    assert len(seen) == 4 and len(calls) == 3 + 2 * 3


def test_steps_with_a_prompt_take_the_plain_way(tiny_llama, tiny_tokenizer, calls):
    engine = Engine(tiny_llama(vocab_size=384), tiny_tokenizer)
    calls.clear()
    engine.generate([Request(prompt=[5, 6, 7], max_tokens=1)])
    assert not calls


@pytest.mark.parametrize("change", ["residual", "kind", "part", "norm"])
def test_what_computes_something_else_is_left_alone(tiny_llama, tiny_tokenizer, change):
    def changed() -> nn.Module:
        model = tiny_llama(vocab_size=384)
        layer = model.model.layers[0]
        if change == "residual":
            plain = layer.forward
            layer.forward = lambda x, **options: 1.5 * plain(x, **options)
        elif change == "kind":
            layer.__class__ = type("OtherDecoderLayer", (type(layer),), {})
        elif change == "part":
            layer.post_feedforward_layernorm = nn.Identity()
        else:
            layer.input_layernorm = nn.LayerNorm(model.config.hidden_size)
        return model

    model: Any = changed()
    engine = Engine(model, tiny_tokenizer)
    assert [isinstance(layer.forward, FusedLayer) for layer in model.model.layers] == [False, True]
    prompt = [5, 6, 7, 8]
    answer = engine.generate([Request(prompt=prompt, max_tokens=6, ignore_eos=True)])[0]
    with torch.no_grad():
        logits = changed()(torch.tensor([[*prompt, *answer.token_ids]]), use_cache=False).logits[0, 3:-1]
    assert logits.argmax(dim=1).tolist() == answer.token_ids


def test_nothing_is_fused_before_its_parts_are(tiny_llama):
    assert fuse_layers(tiny_llama(), {}, None, None) == 0  # type: ignore[arg-type]
