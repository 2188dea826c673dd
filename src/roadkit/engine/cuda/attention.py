"""Attention of decode steps in shapes that never change, so that CUDA can capture them.

decode = MaskedDecode(tables, last)      # buffers that are filled in place before each step
out = decode.attend(q, keys, values, scale=0.125, softcap=0.0, window=0)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..torch_attention import masked_attention, visible


@dataclass(frozen=True)
class MaskedDecode:
    """One new token of every request of a step, over its whole page table: nothing is read back to the host.

    tables  [requests, pages] int64
    last    [requests] int64, position of the new token
    """

    tables: Tensor
    last: Tensor

    @property
    def tokens(self) -> slice:
        """All tokens of the step."""
        return slice(None)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, *, scale: float, softcap: float, window: int) -> Tensor:
        """See `Decode.attend`."""
        k = keys[self.tables].permute(0, 2, 1, 4, 3).flatten(2, 3)  # [requests, kv_heads, positions, head_dim]
        v = values[self.tables].permute(0, 2, 1, 3, 4).flatten(2, 3)
        mask = visible(self.last.unsqueeze(1), k.shape[2], window)  # [requests, positions]
        beyond = ~mask.view(len(q), 1, -1, 1)  # what a page's last user left there may be NaN, which no mask stops
        for gathered in (k, v):  # copies of the pages, which may be changed
            gathered.masked_fill_(beyond, 0)
        mask, query = mask.view(len(q), 1, 1, -1), q.unsqueeze(2)
        return masked_attention(query, k, v, mask, scale=scale, softcap=softcap).squeeze(2)
