"""Batches of like length come in an order that a resumed run meets again."""

from __future__ import annotations

import torch

from roadkit.train.trainers.sampler import GroupedByLength


def test_grouped_order_depends_on_seed_and_epoch_alone():
    lengths = [(7 * i) % 50 for i in range(200)]
    sampler = GroupedByLength(4, lengths, seed=1)
    first = list(sampler)
    torch.rand(5)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert sorted(sampler) == list(range(200))
    batches = [[lengths[i] for i in first[at : at + 4]] for at in range(0, 200, 4)]
    assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 5
