"""Attention over the paged cache, plugged into transformers' attention interface under the name `roadkit`.

    current = route_attention(model)                        # the model's attention modules now use the cache
    with current.computing(make_step(cache, spans, rows)):
        model(input_ids=ids, position_ids=positions, use_cache=False)

This file chooses. One new token of several requests goes through the C kernel on the CPU (`cpu/attention.py`), and in
captured steps through `cuda/attention.py`; what is left goes through plain torch, one request at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import PreTrainedModel

from ..errors import ModelError
from .cache import PagedCache
from .cpu.attention import NativeDecode, has_kernels, store_native
from .step import CurrentStep, Span, Step
from .torch_attention import attend_chunk, store


def route_attention(model: PreTrainedModel) -> CurrentStep:
    """Let the model's attention modules call `attention`. → what tells them their step

    Raises `ModelError` if the model does not allow that.
    """
    if not getattr(model, "_supports_attention_backend", False) or getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} does not use transformers' attention interface: its cache cannot be paged"
        )
    config = model.config.get_text_config()
    kinds = {*(getattr(config, "layer_types", None) or ()), *(getattr(config, "layers_block_type", None) or ())}
    if other := sorted(kinds - {"full_attention", "sliding_attention", "attention"}):
        raise ModelError(f"{type(model).__name__} has layers of type {other[0]!r}, which the paged cache cannot serve")
    AttentionInterface.register("roadkit", attention)
    current = CurrentStep()
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            module.roadkit_current = current  # type: ignore[assignment]
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = "roadkit"  # no mask is registered under this name: none is built
    return current


def make_step(cache: PagedCache, spans: Sequence[Span], rows: Tensor | None = None) -> Step:
    """A step over the tokens of `spans`, attended to in the way that suits the cache's device.

    rows  [1, tokens] int64, each token's slot of the bank; None: no layer rotates
    """
    places = torch.tensor([place for span in spans for place in span.places()], device=cache.device)
    if not has_kernels(cache.device):
        return Step(cache, places, spans)
    chunks = [span for span in spans if span.num_tokens > 1]
    single = [span for span in spans if span.num_tokens == 1]
    return Step(cache, places, chunks, NativeDecode(single, places, rows) if single else None)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """softmax(scaling · query Kᵀ) V of every token over its own request, as transformers' attention modules ask for it.

    query       [1, heads, tokens, head_dim]
    key, value  [1, kv_heads, tokens, head_dim]

    → [1, tokens, heads, head_dim], and no weights. Raises `ModelError` for attention sinks.
    """
    if s_aux is not None:
        raise ModelError("models with attention sinks cannot be served")
    step: Step | None = module.roadkit_current.step
    assert step is not None, f"{type(module).__name__} attends outside a step"
    keys, values = step.cache.layer(module.layer_idx, key.shape[1], key.shape[3], key.dtype)
    q, k, v = (x[0].transpose(0, 1).to(keys.dtype) for x in (query, key, value))  # [tokens, heads, head_dim]
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    options: dict[str, Any] = {"scale": scale, "softcap": softcap or 0.0, "window": sliding_window or 0}
    if has_kernels(q.device):
        store_native(k, v, keys, values, step.places)
    else:
        store(k, v, keys, values, step.places)
    if step.decode is not None and not step.chunks:
        out = step.decode.attend(q, keys, values, **options)
    else:
        out = torch.empty(q.shape, device=q.device, dtype=q.dtype)
        if step.decode is not None:
            out[step.decode.tokens] = step.decode.attend(q[step.decode.tokens], keys, values, **options)
        for span in step.chunks:
            own = slice(span.start, span.start + span.num_tokens)
            out[own] = attend_chunk(span, q[own], k[own], v[own], keys, values, **options)
    return out.unsqueeze(0).to(query.dtype), None
