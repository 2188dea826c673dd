"""Rows that are cut, left out or refused, and tables that nothing can be learnt from."""

from __future__ import annotations

import pytest

from roadkit.errors import RecipeError
from tests.train.data.test_tokens import encoded


def test_long_rows_are_cut_and_counted_and_answers_that_vanish_are_dropped(plain_tokenizer):
    rows = [
        {"prompt": "ab", "completion": "cd"},
        {"prompt": "ab", "completion": "c" * 20},
        {"prompt": "a" * 20, "completion": "c"},
    ]
    found = encoded(plain_tokenizer, *rows, max_length=10)
    assert found.lengths == [5, 10]
    assert (found.truncated, found.dropped) == (2, 1)
    assert (found.num_tokens, found.num_loss_tokens) == (15, 11)


def test_long_rows_are_refused_by_option(plain_tokenizer):
    with pytest.raises(RecipeError, match=r"rows\.jsonl, row 2: 12 tokens, more than max_length 8; truncate: true"):
        encoded(plain_tokenizer, {"text": "a"}, {"text": "a" * 11}, max_length=8, truncate=False)


def test_nothing_to_learn_is_explained(plain_tokenizer):
    with pytest.raises(RecipeError, match="max_length 4 cuts every answer off"):
        encoded(plain_tokenizer, {"prompt": "abcdef", "completion": "g"}, max_length=4)
    with pytest.raises(RecipeError, match="every answer is empty"):
        encoded(plain_tokenizer, {"prompt": "abcdef", "completion": ""})
