"""`Subspace`: a set of a layer's output pairs, the P of Φ(h) = h + Pᵀ(P R h − P h) (RoAd, arXiv 2409.00119, §3.2).

    german, instruct = Subspace.split(576, group_size=64)      # halves; parts=3 gives thirds
    german | instruct == Subspace.whole(576, group_size=64)

Pairs are numbered group by group as in `rotation`: pair p lies in group p // (g/2) and holds outputs i and i + g/2. A
subspace is made of whole pairs, so that no block of R is cut in two.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import AlgebraError
from ..rotation import check_group_size


@dataclass(frozen=True)
class Subspace:
    """Pairs of a layer of output `width`, paired by `group_size`. Build one with `of`, `split`, `whole` or `outputs`."""

    width: int
    group_size: int
    pairs: frozenset[int]

    def __post_init__(self) -> None:
        check_group_size(self.width, self.group_size, "subspace")
        outside = sorted(pair for pair in self.pairs if not 0 <= pair < self.width // 2)
        if outside:
            raise AlgebraError(f"pair {outside[0]} lies outside the {self.width // 2} pairs of width {self.width}")

    @classmethod
    def of(cls, width: int, pairs: Collection[int], *, group_size: int = 64) -> Subspace:
        """The pairs with these numbers."""
        return cls(width, group_size, frozenset(pairs))

    @classmethod
    def whole(cls, width: int, *, group_size: int = 64) -> Subspace:
        """Every pair."""
        return cls(width, group_size, frozenset(range(width // 2)))

    @classmethod
    def split(cls, width: int, parts: int = 2, *, group_size: int = 64) -> tuple[Subspace, ...]:
        """`parts` disjoint subspaces of consecutive pairs, their sizes equal or one pair apart; the union is the whole.

        If the groups divide evenly these are consecutive outputs: the first of two is the upper half of R.
        """
        pairs = width // 2
        if not 1 <= parts <= pairs:
            raise AlgebraError(f"{pairs} pairs of width {width} cannot be split into {parts} parts")
        edges = [pairs * part // parts for part in range(parts + 1)]
        return tuple(cls(width, group_size, frozenset(range(first, last))) for first, last in itertools.pairwise(edges))

    @classmethod
    def outputs(cls, width: int, outputs: Collection[int], *, group_size: int = 64) -> Subspace:
        """The pairs that these outputs make up. Raises `AlgebraError` if one is there without its partner."""
        check_group_size(width, group_size, "subspace")
        half, wanted, pairs = group_size // 2, set(outputs), set()
        for output in sorted(wanted):
            group, offset = divmod(output, group_size)
            partner = output + half if offset < half else output - half
            if partner not in wanted:
                raise AlgebraError(
                    f"output {output} pairs with {partner} (group_size {group_size}), which the subspace leaves out; "
                    "take both or neither"
                )
            pairs.add(group * half + offset % half)
        return cls(width, group_size, frozenset(pairs))

    @property
    def mask(self) -> Tensor:
        """[width] bool: which outputs belong to it."""
        half = self.group_size // 2
        chosen = torch.zeros(self.width // 2, dtype=torch.bool)
        chosen[sorted(self.pairs)] = True
        return chosen.view(-1, 1, half).expand(-1, 2, half).reshape(-1)

    def __len__(self) -> int:
        return len(self.pairs)

    def __or__(self, other: Subspace) -> Subspace:
        return self._like(other, self.pairs | other.pairs)

    def __and__(self, other: Subspace) -> Subspace:
        return self._like(other, self.pairs & other.pairs)

    def __sub__(self, other: Subspace) -> Subspace:
        return self._like(other, self.pairs - other.pairs)

    def __invert__(self) -> Subspace:
        return self._like(self, frozenset(range(self.width // 2)) - self.pairs)

    def __repr__(self) -> str:
        return f"Subspace({len(self)} of {self.width // 2} pairs, group_size={self.group_size})"

    def _like(self, other: Subspace, pairs: frozenset[int]) -> Subspace:
        if (self.width, self.group_size) != (other.width, other.group_size):
            raise AlgebraError(
                f"subspaces of width {self.width}, group_size {self.group_size} and of width {other.width}, "
                f"group_size {other.group_size} have different pairs"
            )
        return Subspace(self.width, self.group_size, pairs)


def check_disjoint(subspaces: Mapping[str, Subspace]) -> None:
    """Raises `AlgebraError` naming the first two subspaces that share a pair, and the pair."""
    owner: dict[int, str] = {}
    for name, subspace in subspaces.items():
        for pair in sorted(subspace.pairs):
            if pair in owner:
                raise AlgebraError(f"subspaces {owner[pair]!r} and {name!r} overlap, both hold pair {pair}")
            owner[pair] = name
