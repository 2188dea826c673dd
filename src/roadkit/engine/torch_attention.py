"""Attention through pages in plain torch, on any device: storing keys and values, and a chunk of one request's tokens.

store(k, v, keys, values, places)
out = attend_chunk(span, q, k, v, keys, values, scale=0.125, softcap=0.0, window=0)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .cache import PAGE
from .step import Span


def store(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, places: Tensor) -> None:
    """`keys[page, :, :, offset] = k[i]` and `values[page, :, offset] = v[i]` with page · PAGE + offset = places[i].

    k, v    [tokens, kv_heads, head_dim]
    keys    [pages, kv_heads, head_dim, PAGE], values [pages, kv_heads, PAGE, head_dim]
    """
    pages, offsets = places // PAGE, places % PAGE
    keys[pages, :, :, offsets] = k
    values[pages, :, offsets] = v


def attend_chunk(
    span: Span,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scale: float,
    softcap: float,
    window: int,
) -> Tensor:
    """softmax(scale · q Kᵀ) V of one request's new tokens over themselves and everything before them.

    q                [tokens, heads, head_dim], which is the result's shape too
    k, v             [tokens, kv_heads, head_dim] of the new tokens; those before them come from their pages
    softcap, window  as `Decode.attend` has them
    """
    total = span.context + span.num_tokens
    if span.context:
        index = torch.tensor(span.pages[: -(-total // PAGE)], device=q.device)
        k = keys[index].permute(0, 3, 1, 2).flatten(0, 1)[:total]
        v = values[index].permute(0, 2, 1, 3).flatten(0, 1)[:total]
    query, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # [1, heads, tokens, head_dim]
    mask = None
    if span.context or window or softcap:
        at = torch.arange(span.context, total, device=q.device).unsqueeze(1)
        mask = visible(at, total, window)
    return masked_attention(query, k, v, mask, scale=scale, softcap=softcap)[0].transpose(0, 1)


def visible(at: Tensor, total: int, window: int) -> Tensor:
    """[..., total] bool: the positions, of `total`, that tokens at positions `at` [..., 1] attend to."""
    to = torch.arange(total, device=at.device)
    return (to <= at) & (to > at - window) if window else to <= at


def masked_attention(
    query: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float, softcap: float
) -> Tensor:
    """softmax(scale · query kᵀ) v over the positions that the mask allows.

    query    [n, heads, tokens, head_dim]
    k, v     [n, kv_heads, positions, head_dim]; neighbouring query heads share one of them if there are fewer
    mask     bool, broadcast to [n, heads, tokens, positions]; None: each token over itself and those before it
    softcap  c squashes each logit x to c · tanh(x / c), as Gemma 2 does; 0: none. It needs a mask
    """
    shared = query.shape[1] // k.shape[1]
    if not softcap:
        return scaled_dot_product_attention(
            query, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=shared > 1
        )
    assert mask is not None, "logits are capped under a mask only"
    k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
    scores = softcap * torch.tanh(query @ k.transpose(-1, -2) * (scale / softcap))
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ v
