from __future__ import annotations

import torch

from roadkit.engine.logprobs import token_logprobs
from tests.conftest import TOLERANCE

VOCAB = 24


def test_logprobs_are_log_softmax():
    logits, tokens = torch.randn(4, VOCAB), [3, 5, 7, 9]
    found = token_logprobs(logits, tokens, [0, None, 3, 100])
    table = logits.log_softmax(dim=-1)
    assert found[1] is None
    for i, count in ((0, 0), (2, 3), (3, VOCAB)):
        entry = found[i]
        assert entry is not None
        assert entry.token_id == tokens[i]
        torch.testing.assert_close(torch.tensor(entry.logprob), table[i, tokens[i]], **TOLERANCE[torch.float32])
        assert len(entry.top) == count
        values, order = table[i].topk(count)
        assert [token for token, _ in entry.top] == order.tolist()
        torch.testing.assert_close(torch.tensor([value for _, value in entry.top]), values, **TOLERANCE[torch.float32])


def test_nobody_asks_for_logprobs():
    assert token_logprobs(torch.randn(2, VOCAB), [1, 2], [None, None]) == [None, None]
    assert token_logprobs(torch.randn(0, VOCAB), [], []) == []
