"""Attention over the paged cache, plugged into transformers' attention interface under the name `roadkit`.

    install(model, cache)          # the model's attention modules now read and write the cache
    with step.active(): ...        # what the runner sets for one forward pass

Tokens of all requests lie end to end in one row, [1, tokens]. A request's single new token is served by the fused
kernel; chunks of a prompt go through torch's scaled_dot_product_attention, one request at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import PreTrainedModel

from ..errors import ModelError
from ..kernels import native
from .cache import PAGE, PagedCache


@dataclass
class Span:
    """The tokens of one request in a step: where they lie in the row, and what they attend to."""

    start: int  # first token in the row
    count: int
    context: int  # positions computed before this step
    pages: list[int]


class Static(NamedTuple):
    """A step of one new token for every request, in shapes that never change: see `static_decode`."""

    tables: Tensor  # [requests, pages]
    last: Tensor  # [requests] position of the new token


@dataclass
class Step:
    """One forward pass. The index tensors are made once and read by every layer."""

    cache: PagedCache
    spans: list[Span] = field(default_factory=list)
    slots: Tensor = field(default_factory=lambda: torch.empty(0))  # [tokens] page · PAGE + offset
    static: Static | None = None
    native: native.DecodeStep | None = None  # as inference.c reads a step that computes one token of every request

    def begin(self, spans: list[Span]) -> None:
        device = self.cache.device
        self.spans = spans
        slots: list[int] = []
        for span in spans:
            positions = range(span.context, span.context + span.count)
            slots += [span.pages[position // PAGE] * PAGE + position % PAGE for position in positions]
        self.slots = torch.tensor(slots, device=device)
        single = [span for span in spans if span.count == 1]
        self.single_rows = torch.tensor([span.start for span in single], device=device)
        self.contiguous = [span.start for span in single] == list(range(len(single)))
        most = max((len(span.pages) for span in single), default=0)
        self.tables = torch.tensor([span.pages + [0] * (most - len(span.pages)) for span in single], device=device)
        self.last = torch.tensor([span.context for span in single], device=device)
        self.room = max((span.context + 1 for span in single), default=0) + 2 * PAGE  # for one head's scores
        self._first: dict[int, Tensor] = {}
        self.native = None
        if spans and len(single) == len(spans):
            tensors = (self.slots, self.tables, self.last)
            sizes = (self.tables.stride(0), self.room, torch.get_num_threads())
            self.native = native.DecodeStep(len(spans), None, *(x.data_ptr() for x in tensors), *sizes)

    def first(self, window: int | None) -> Tensor:
        """[single tokens] the first position that each attends to."""
        window = window or 0
        if window not in self._first:
            self._first[window] = (self.last + 1 - window).clamp_min_(0) if window else torch.zeros_like(self.last)
        return self._first[window]


def install(model: PreTrainedModel, cache: PagedCache) -> Step:
    """Route the model's attention through the cache. Raises `ModelError` where transformers' interface is not used."""
    if not getattr(model, "_supports_attention_backend", False) or getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} does not use transformers' attention interface: its cache cannot be paged"
        )
    config = model.config.get_text_config()
    kinds = {*(getattr(config, "layer_types", None) or ()), *(getattr(config, "layers_block_type", None) or ())}
    if other := sorted(kinds - {"full_attention", "sliding_attention", "attention"}):
        raise ModelError(f"{type(model).__name__} has layers of type {other[0]!r}, which the paged cache cannot serve")
    AttentionInterface.register("roadkit", attention)
    step = Step(cache)
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            module.roadkit_step = step  # type: ignore[assignment]
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = "roadkit"  # no mask is registered under this name: none is built
    return step


def attention(
    module: nn.Module,
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
    """query [1, heads, tokens, d], key and value [1, kv_heads, tokens, d] → [1, tokens, heads, d]."""
    if s_aux is not None:
        raise ModelError("models with attention sinks cannot be served")
    step: Step = module.roadkit_step  # type: ignore[assignment]
    keys, values = step.cache.layer(module.layer_idx, key.shape[1], key.shape[3], key.dtype)  # type: ignore[arg-type]
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    window = sliding_window or 0
    q, k, v = (x[0].transpose(0, 1).to(keys.dtype) for x in (query, key, value))  # [tokens, heads, d]
    library = native.load() if q.device.type == "cpu" else None
    _store(library, k, v, keys, values, step.slots)
    if step.static is not None:
        out = _attend_static(step.static, q, keys, values, scale, softcap, window)
        return out.unsqueeze(0).to(query.dtype), None
    out = torch.empty(q.shape, device=q.device, dtype=q.dtype)
    rest = step.spans
    if library is not None and step.last.numel():
        _attend_native(library, step, q, out, keys, values, scale, softcap or 0.0, window)
        rest = [span for span in step.spans if span.count > 1]
    for span in rest:
        rows = slice(span.start, span.start + span.count)
        out[rows] = _attend(span, q[rows], k[rows], v[rows], keys, values, scale, softcap, window)
    return out.unsqueeze(0).to(query.dtype), None


def _store(library, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """k and v [tokens, kv_heads, head_dim] into their pages."""
    if library is not None:
        k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (k, v))
        if k.stride() != v.stride():
            k, v = k.contiguous(), v.contiguous()
        pointers = (x.data_ptr() for x in (k, v, keys, values, slots))
        library.rk_store(*pointers, *k.shape, k.stride(0), k.stride(1))
        return
    pages, offsets = slots // PAGE, slots % PAGE
    keys[pages, :, :, offsets] = k
    values[pages, :, offsets] = v


def _attend_native(library, step: Step, q: Tensor, out: Tensor, keys, values, scale, softcap, window) -> None:
    """One new token of several requests, each over its own pages."""
    if step.contiguous:  # the single tokens lead the row
        query, target = q, out
    else:
        query = q[step.single_rows].contiguous()
        target = torch.empty(query.shape)
    if query.stride(2) != 1:
        query = query.contiguous()
    count, num_heads, head_dim = len(step.last), q.shape[1], q.shape[2]
    scratch = torch.empty(count * num_heads, step.room)
    library.rk_attend(
        *(x.data_ptr() for x in (query, target, keys, values, step.tables)),
        step.tables.stride(0),
        step.first(window).data_ptr(),
        step.last.data_ptr(),
        *(count, num_heads, keys.shape[1], head_dim, query.stride(0), query.stride(1)),
        *(scale, softcap, scratch.data_ptr(), step.room, torch.get_num_threads()),
    )
    if not step.contiguous:
        out[step.single_rows] = target


def _attend(span: Span, q, k, v, keys, values, scale, softcap, window) -> Tensor:
    """A chunk of one request: q [count, heads, head_dim] over everything up to it."""
    if span.context:  # earlier positions come back from their pages
        index = torch.tensor(span.pages[: -(-(span.context + span.count) // PAGE)], device=q.device)
        total = span.context + span.count
        k = keys[index].permute(0, 3, 1, 2).flatten(0, 1)[:total]
        v = values[index].permute(0, 2, 1, 3).flatten(0, 1)[:total]
    total = k.shape[0]
    query, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # [1, heads, tokens, head_dim]
    mask = None
    if span.context or window or softcap:
        at = torch.arange(span.context, total, device=q.device).unsqueeze(1)
        to = torch.arange(total, device=q.device)
        mask = (to <= at) & (to > at - window) if window else to <= at
    if softcap:
        out = _softcapped(query, k, v, mask, scale, softcap)
    else:
        shared = q.shape[1] != k.shape[1]
        out = nn.functional.scaled_dot_product_attention(
            query, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=shared
        )
    return out[0].transpose(0, 1)


def _attend_static(static: Static, q: Tensor, keys, values, scale, softcap, window) -> Tensor:
    """One new token of every request over its whole table, masked: fixed shapes, nothing read back to the host."""
    k = keys[static.tables].permute(0, 2, 1, 4, 3).flatten(2, 3)  # [requests, kv_heads, positions, d]
    v = values[static.tables].permute(0, 2, 1, 3, 4).flatten(2, 3)
    to, at = torch.arange(k.shape[2], device=q.device), static.last.unsqueeze(1)
    mask = (to <= at) & (to > at - window) if window else to <= at
    beyond = ~mask.view(len(q), 1, -1, 1)  # what a page's last user left there may be NaN, which no mask stops
    for gathered in (k, v):  # copies of the pages, which may be changed
        gathered.masked_fill_(beyond, 0)
    mask, query = mask.view(len(q), 1, 1, -1), q.unsqueeze(2)
    if softcap:
        return _softcapped(query, k, v, mask, scale, softcap).squeeze(2)
    shared = query.shape[1] != k.shape[1]
    out = nn.functional.scaled_dot_product_attention(query, k, v, attn_mask=mask, scale=scale, enable_gqa=shared)
    return out.squeeze(2)


def _softcapped(query: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float) -> Tensor:
    """Attention with logits squashed by softcap · tanh(x / softcap), which torch's fused attention lacks (Gemma 2)."""
    share = query.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    scores = softcap * torch.tanh(query @ k.transpose(-1, -2) * (scale / softcap))
    assert mask is not None
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ v
