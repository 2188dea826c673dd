"""Choosing the next token of many requests at once, each by its own settings.

    tokens = sample(logits, sequences)      # logits [n, vocab] float32

The order of the steps is transformers': repetition penalty, n-grams, minimum length, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .sequence import TokenSequence

_NEGATIVE = float("-inf")


def sample(logits: Tensor, sequences: Sequence[TokenSequence]) -> list[int]:
    """One token for each row of logits [n, vocab]; changes logits in place."""
    _penalise(logits, sequences)
    greedy = logits.argmax(dim=-1)
    drawn = [i for i, sequence in enumerate(sequences) if sequence.request.temperature > 0]
    if drawn:
        index = torch.tensor(drawn, device=logits.device)
        greedy[index] = _draw(logits[index], [sequences[i] for i in drawn])
    return greedy.tolist()


def _penalise(logits: Tensor, sequences: Sequence[TokenSequence]) -> None:
    for row, sequence in zip(logits, sequences, strict=True):
        request = sequence.request
        if request.repetition_penalty != 1:
            seen = torch.tensor(sorted(set(sequence.token_ids)), device=row.device)
            scores = row[seen]
            row[seen] = torch.where(
                scores < 0, scores * request.repetition_penalty, scores / request.repetition_penalty
            )
        if request.no_repeat_ngram_size:
            banned = _repeats(sequence.token_ids, request.no_repeat_ngram_size)
            row[torch.tensor(banned, dtype=torch.int64, device=row.device)] = _NEGATIVE
        if sequence.num_generated < request.min_tokens or request.ignore_eos:
            row[sequence.end_index.to(row.device)] = _NEGATIVE
        if sequence.grammar is not None:
            sequence.grammar.mask(row)


def _repeats(token_ids: list[int], size: int) -> list[int]:
    """Tokens that would complete an n-gram of `size` seen before."""
    if len(token_ids) < size:
        return []
    prefix = token_ids[len(token_ids) - size + 1 :]
    starts = range(len(token_ids) - size + 1)
    return [token_ids[i + size - 1] for i in starts if token_ids[i : i + size - 1] == prefix]


def _draw(logits: Tensor, sequences: Sequence[TokenSequence]) -> Tensor:
    """Sample by inverting the cumulative distribution over tokens sorted by likelihood."""
    device = logits.device
    temperature = torch.tensor([sequence.request.temperature for sequence in sequences], device=device)
    below = logits - logits.max(dim=-1, keepdim=True).values  # so that a tiny temperature overflows to −∞, never to NaN
    scaled = below / temperature.clamp_min(1e-30).unsqueeze(1)
    probabilities, order = scaled.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    vocab = probabilities.shape[1]
    top_k = torch.tensor([sequence.request.top_k or vocab for sequence in sequences], device=device).unsqueeze(1)
    top_p = torch.tensor([sequence.request.top_p for sequence in sequences], device=device).unsqueeze(1)
    min_p = torch.tensor([sequence.request.min_p for sequence in sequences], device=device).unsqueeze(1)
    probabilities = probabilities.masked_fill(torch.arange(vocab, device=device) >= top_k, 0)
    probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = probabilities.masked_fill((before >= top_p) & (top_p < 1), 0)  # the first token always stays
    probabilities = probabilities.masked_fill(probabilities < min_p * probabilities[:, :1], 0)
    cumulative = probabilities.double().cumsum(dim=-1)
    uniform = [_uniform(sequence.seed, sequence.num_generated) for sequence in sequences]
    target = (torch.tensor(uniform, dtype=torch.float64, device=device) * cumulative[:, -1]).unsqueeze(1)
    index = torch.searchsorted(cumulative, target, right=True).clamp_max_(vocab - 1)
    last = (probabilities > 0).sum(dim=-1, keepdim=True) - 1  # rounding must not choose a token of probability 0
    return order.gather(1, torch.minimum(index, last).clamp_min_(0)).squeeze(1)  # −1 if a row is all NaN


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on the seed and the position alone (SplitMix64)."""
    mask = (1 << 64) - 1
    state = (seed * 0x9E3779B97F4A7C15 + (position + 1) * 0xBF58476D1CE4E5B9) & mask
    for multiplier in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        state = ((state ^ (state >> 30)) * multiplier) & mask
        state ^= state >> 31
    return (state >> 11) / (1 << 53)
