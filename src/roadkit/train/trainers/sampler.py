"""Batches of rows of like length, for less padding.

sampler = GroupedByLength(8, encoded.lengths, seed=0)
sampler.set_epoch(1); order = list(sampler)          # indices; the same for the same seed and epoch
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class GroupedByLength(LengthGroupedSampler):
    """Its order depends on seed and epoch alone, not on random numbers drawn before: a resumed run sees the same."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        return super().__iter__()
