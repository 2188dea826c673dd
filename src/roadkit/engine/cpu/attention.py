"""Attention through pages in C: storing keys and values, and one new token of several requests at once.

store_native(k, v, keys, values, places)
decode = NativeDecode([Span(start=0, num_tokens=1, context=7, pages=[3])], places)
out = decode.attend(q, keys, values, scale=0.125, softcap=0.0, window=0)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels import native
from ..cache import PAGE
from ..step import Span


def has_kernels(device: torch.device) -> bool:
    """Can the C kernels serve tensors of this device?"""
    return device.type == "cpu" and native.load() is not None


def store_native(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, places: Tensor) -> None:
    """`torch_attention.store` in one call: float32, heads and tokens of k and v with any strides."""
    k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (k, v))
    if k.stride() != v.stride():
        k, v = k.contiguous(), v.contiguous()
    pointers = (x.data_ptr() for x in (k, v, keys, values, places))
    native.loaded().rk_store(*pointers, *k.shape, k.stride(0), k.stride(1))


class NativeDecode:
    """One new token of each of several requests, as the C kernels read them.

    spans   the requests
    places  [tokens] int64, the whole step's
    rows    [1, tokens] int64, the whole step's slots of the bank; None: base requests only

    A whole decoder layer in one call (`FusedLayer`) reads `native`, places and rows included: it needs a step that has
    no other tokens.
    """

    def __init__(self, spans: Sequence[Span], places: Tensor, rows: Tensor | None = None):
        starts = [span.start for span in spans]
        leading = starts == list(range(len(spans)))
        self.tokens: slice | Tensor = slice(len(spans)) if leading else torch.tensor(starts)
        width = max(len(span.pages) for span in spans)
        tables = torch.tensor([span.pages + [0] * (width - len(span.pages)) for span in spans])
        last = torch.tensor([span.context for span in spans])
        longest = max(span.context for span in spans) + 1 + 2 * PAGE  # room for one head's scores
        self._tensors = (rows, places, tables, last)  # `native` holds their addresses
        addresses = (None if tensor is None else tensor.data_ptr() for tensor in self._tensors)
        self.native = native.DecodeStep(len(spans), *addresses, width, longest, torch.get_num_threads())

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, *, scale: float, softcap: float, window: int) -> Tensor:
        """See `Decode.attend`; everything is float32."""
        q = q if q.stride(2) == 1 else q.contiguous()
        out = torch.empty(q.shape)
        num_requests, num_heads, head_dim = q.shape
        scratch = torch.empty(num_requests * num_heads, self.native.longest)
        pointers = (x.data_ptr() for x in (q, out, keys, values))
        sizes = (num_heads, keys.shape[1], head_dim, q.stride(0), q.stride(1))
        native.loaded().rk_attend(self.native, *pointers, *sizes, scale, softcap, window, scratch.data_ptr())
        return out
