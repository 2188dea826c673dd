"""Log-probabilities of tokens, with the likeliest alternatives.

chosen, none = token_logprobs(logits, [5, 7], counts=[3, None])      # logits [2, vocab]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .request import TokenLogprob


def token_logprobs(logits: Tensor, token_ids: Sequence[int], counts: Sequence[int | None]) -> list[TokenLogprob | None]:
    """`log softmax(logits[i])[token_ids[i]]` in nats, and that of the `counts[i]` likeliest tokens; None skips a row.

    logits  [n, vocab], any float dtype; the arithmetic is float32
    """
    wanted = [i for i, count in enumerate(counts) if count is not None]
    results: list[TokenLogprob | None] = [None] * len(token_ids)
    if not wanted:
        return results
    table = logits[torch.tensor(wanted, device=logits.device)].float().log_softmax(dim=-1)
    for row, i in zip(table, wanted, strict=True):
        top = row.topk(min(counts[i] or 0, len(row)))
        pairs = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        results[i] = TokenLogprob(token_ids[i], float(row[token_ids[i]]), pairs)
    return results
