"""Rows of unequal length as one batch of tensors.

batch = pad_batch(encoded.examples[:8], tokenizer.pad_token_id)      # input_ids, attention_mask, labels
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .tokens import IGNORED


def pad_batch(examples: Sequence[Mapping[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
    """Rows of token ids → input_ids, attention_mask and labels, each [rows, tokens], padded on the right."""
    width = max(len(example["input_ids"]) for example in examples)

    def padded(rows: list[list[int]], value: int) -> Tensor:
        return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])

    ids = [example["input_ids"] for example in examples]
    return {
        "input_ids": padded(ids, pad_token_id),
        "attention_mask": padded([[1] * len(row) for row in ids], 0),
        "labels": padded([example["labels"] for example in examples], IGNORED),
    }
