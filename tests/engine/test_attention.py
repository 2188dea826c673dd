from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roadkit.engine.attention import attention, make_step, route_attention
from roadkit.engine.cache import PAGE, PagedCache
from roadkit.engine.step import CurrentStep, Span
from roadkit.errors import ModelError
from roadkit.kernels import native
from tests.conftest import TOLERANCE


def plain(q, k, v, *, scale=None, softcap=None, window=None):
    """The definition, in float64: every token over itself and those before it. q [tokens, heads, d]."""
    q, k, v = (x.double() for x in (q, k, v))
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[2] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    at, to = torch.arange(len(q)).unsqueeze(1), torch.arange(len(k))
    allowed = (to <= at) & (to > at - window) if window else to <= at
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~allowed, -math.inf).softmax(dim=-1), v)


class Requests:
    """Some requests whose tokens are computed step by step over one cache with scattered pages."""

    def __init__(self, lengths, heads, kv_heads, head_dim, dtype=torch.float32, **options):
        total = sum(-(-length // PAGE) for length in lengths)
        cache = PagedCache(total + 3, device=torch.device("cpu"))
        pages = torch.randperm(total + 3).tolist()
        self.pages = [[pages.pop() for _ in range(-(-length // PAGE))] for length in lengths]
        self.q = [torch.randn(length, heads, head_dim).to(dtype) for length in lengths]
        self.k = [torch.randn(length, kv_heads, head_dim).to(dtype) for length in lengths]
        self.v = [torch.randn(length, kv_heads, head_dim).to(dtype) for length in lengths]
        self.done = [0] * len(lengths)
        self.outputs = [[] for _ in lengths]
        self.cache, self.current = cache, CurrentStep()
        self.module = SimpleNamespace(layer_idx=0, roadkit_current=self.current)
        names = {"scale": "scaling", "softcap": "softcap", "window": "sliding_window"}
        self.options, self.reference = {names[name]: value for name, value in options.items()}, options

    def step(self, counts: dict[int, int]) -> None:
        """One step: `counts[i]` more tokens of request i."""
        spans, parts, start = [], [], 0
        for i, count in counts.items():
            spans.append(Span(start, count, self.done[i], self.pages[i]))
            parts.append((i, slice(self.done[i], self.done[i] + count)))
            start += count
        step = make_step(self.cache, spans)
        q, k, v = (
            torch.cat([table[i][part] for i, part in parts]).transpose(0, 1).unsqueeze(0)
            for table in (self.q, self.k, self.v)
        )
        with self.current.computing(step):
            out, weights = attention(self.module, q, k, v, **self.options)
        assert weights is None
        assert out.shape == (1, start, *self.q[0].shape[1:])
        assert out.dtype == q.dtype
        for (i, _), span in zip(parts, spans, strict=True):
            self.outputs[i].append(out[0, span.start : span.start + span.num_tokens])
            self.done[i] += span.num_tokens

    def check(self) -> None:
        for q, k, v, outputs in zip(self.q, self.k, self.v, self.outputs, strict=True):
            actual = torch.cat(outputs)
            expected = plain(q, k, v, **self.reference)[: len(actual)].to(actual.dtype)
            tolerance = TOLERANCE[actual.dtype]
            size = float(expected.abs().max())
            torch.testing.assert_close(actual, expected, rtol=tolerance["rtol"], atol=tolerance["rtol"] * size)


@pytest.fixture(params=["native", "torch"])
def backend(request, monkeypatch):
    if request.param == "native" and native.load() is None:
        pytest.skip("no C compiler here")
    if request.param == "torch":
        monkeypatch.setattr(native, "load", lambda: None)


HEADS = [(4, 2, 8), (3, 3, 5), (4, 1, 17), (1, 1, 1), (8, 2, 64), (2, 2, 2)]
OPTIONS = [{}, {"window": 1}, {"window": 7}, {"window": 16}, {"window": 40}, {"softcap": 3.0}, {"scale": 0.7}]
OPTIONS += [{"softcap": 20.0, "window": 17, "scale": 0.2}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_decoding_is_plain_attention(backend, heads, options):
    """A prompt each, then token by token for all of them."""
    lengths = (1, 15, 16, 17, 33, 70)
    requests = Requests([length + 20 for length in lengths], *heads, **options)
    requests.step(dict(enumerate(lengths)))
    for _ in range(20):
        requests.step(dict.fromkeys(range(len(lengths)), 1))
    requests.check()


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=4),
    st.sampled_from(HEADS),
    st.sampled_from(OPTIONS),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_any_order_of_chunks_is_plain_attention(lengths, heads, options, fused, random):
    with pytest.MonkeyPatch.context() as patch:
        if not fused:
            patch.setattr(native, "load", lambda: None)
        requests = Requests(lengths, *heads, **options)
        while True:
            open_ones = [i for i, length in enumerate(lengths) if requests.done[i] < length]
            if not open_ones:
                break
            chosen = random.sample(open_ones, random.randint(1, len(open_ones)))
            requests.step({i: min(random.choice((1, 1, 2, 5, 16, 31)), lengths[i] - requests.done[i]) for i in chosen})
        requests.check()


@pytest.mark.parametrize("options", [{}, {"window": 100}], ids=str)
def test_long_contexts(backend, options):
    requests = Requests([1500, 700, 3], 4, 2, 16, **options)
    requests.step({0: 1490, 1: 600, 2: 1})
    for _ in range(2):
        requests.step({2: 1, 0: 5, 1: 50})
    requests.check()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_models(backend, dtype):
    requests = Requests([30, 20], 4, 2, 8, dtype=dtype)
    requests.step({0: 25, 1: 1})
    for _ in range(5):
        requests.step({1: 1, 0: 1})
    requests.check()


@pytest.mark.skipif(native.load() is None, reason="no C compiler here")
@pytest.mark.parametrize("options", [{}, {"window": 9}, {"softcap": 5.0}], ids=str)
def test_a_token_alone_is_exactly_the_token_in_any_batch(options):
    def outputs(others: int) -> list[torch.Tensor]:
        torch.manual_seed(3)
        requests = Requests([40, 60, 20, 50], 4, 2, 8, **options)
        requests.step({0: 30})
        if others:
            requests.step({1: 59, 2: 10, 3: 49})
        for _ in range(10):
            requests.step({i: 1 for i in range(others + 1) if requests.done[i] < len(requests.q[i])})
        return requests.outputs[0][1:]

    alone = outputs(0)
    for others in (1, 3):
        assert all(map(torch.equal, outputs(others), alone))


@pytest.mark.skipif(native.load() is None, reason="no C compiler here")
@settings(max_examples=30)
@given(st.floats(-1e4, 1e4), st.floats(0, 100))
def test_extreme_scores_stay_finite(offset, spread):
    requests = Requests([40], 2, 1, 4)
    requests.q[0] = torch.ones_like(requests.q[0])
    requests.k[0] = offset + spread * torch.randn_like(requests.k[0])
    requests.step({0: 39})
    requests.step({0: 1})
    last = requests.outputs[0][-1]
    assert last.isfinite().all()
    expected = plain(requests.q[0], requests.k[0], requests.v[0])[-1:]
    torch.testing.assert_close(last.double(), expected, rtol=1e-2, atol=2e-2)  # scores of 1e4 have few digits left


@pytest.mark.skipif(native.load() is None, reason="no C compiler here")
def test_weights_are_softmax_to_the_last_digits():
    """Values that pick out one position each, so that the output is the row of weights itself."""
    requests = Requests([64], 1, 1, 64)
    requests.q[0], requests.v[0] = torch.eye(64)[:, None] * 8, torch.eye(64)[:, None]
    requests.k[0] = torch.linspace(-12, 12, 64 * 64)[torch.randperm(64 * 64)].view(64, 1, 64)
    requests.step({0: 63})
    requests.step({0: 1})
    expected = plain(requests.q[0], requests.k[0], requests.v[0])[-1:]
    torch.testing.assert_close(requests.outputs[0][-1].double(), expected, rtol=3e-6, atol=1e-30)


# ---- which models -----------------------------------------------------------------------------------------------


def test_models_outside_transformers_interface_are_refused():
    from transformers import BloomConfig, BloomForCausalLM, T5Config, T5ForConditionalGeneration

    bloom = BloomForCausalLM(BloomConfig(vocab_size=16, hidden_size=8, n_layer=1, n_head=2))
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    for model in (bloom, t5):
        with pytest.raises(
            ModelError, match=r"does not use transformers' attention interface: its cache cannot be paged"
        ):
            route_attention(model)


def test_models_with_other_kinds_of_layers_are_refused():
    """A layer that carries a state from token to token would silently start anew at each step."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    config = Lfm2Config(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, full_attn_idxs=[1],
    )  # fmt: skip
    with pytest.raises(
        ModelError, match="Lfm2ForCausalLM has layers of type 'conv', which the paged cache cannot serve"
    ):
        route_attention(Lfm2ForCausalLM(config))


def test_attention_sinks_are_refused():
    requests = Requests([4], 2, 1, 4)
    requests.options["s_aux"] = torch.zeros(2)
    with pytest.raises(ModelError, match="attention sinks"):
        requests.step({0: 4})
