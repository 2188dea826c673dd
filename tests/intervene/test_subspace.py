from __future__ import annotations

import pytest
import torch

from roadkit.errors import AlgebraError
from roadkit.intervene import Subspace, check_disjoint
from roadkit.rotation import swap


@pytest.mark.parametrize(("width", "group_size", "parts"), [(64, 2, 2), (64, 16, 3), (576, 64, 2), (96, 96, 5)])
def test_split_parts_are_disjoint_and_cover_everything(width, group_size, parts):
    split = Subspace.split(width, parts, group_size=group_size)
    check_disjoint({str(i): part for i, part in enumerate(split)})
    union = split[0]
    for part in split[1:]:
        union = union | part
    assert union == Subspace.whole(width, group_size=group_size)
    assert max(map(len, split)) - min(map(len, split)) <= 1


@pytest.mark.parametrize("group_size", [2, 16, 64])
def test_mask_never_cuts_a_pair(group_size):
    for part in Subspace.split(64, 3, group_size=group_size):
        mask = part.mask.float()
        assert torch.equal(mask, swap(mask, group_size))
        assert int(mask.sum()) == 2 * len(part)


def test_first_of_two_neighbouring_halves_is_the_upper_half_of_the_outputs():
    upper, lower = Subspace.split(8, 2, group_size=2)
    assert upper.mask.tolist() == [True] * 4 + [False] * 4
    assert (~upper) == lower
    assert upper - lower == upper
    assert len(upper & lower) == 0


def test_outputs_need_both_members_of_a_pair():
    assert Subspace.outputs(8, [0, 2, 5, 7], group_size=4).pairs == {0, 3}
    with pytest.raises(AlgebraError, match="output 1 pairs with 3"):
        Subspace.outputs(8, [0, 1, 2], group_size=4)


def test_overlap_is_named():
    one, two = Subspace.of(8, [0, 1], group_size=2), Subspace.of(8, [1, 2], group_size=2)
    with pytest.raises(AlgebraError, match="'german' and 'instruct' overlap, both hold pair 1"):
        check_disjoint({"german": one, "instruct": two})


def test_impossible_subspaces_are_refused():
    with pytest.raises(AlgebraError, match="pair 4 lies outside the 4 pairs"):
        Subspace.of(8, [4], group_size=2)
    with pytest.raises(AlgebraError, match="different pairs"):
        Subspace.whole(8, group_size=2) | Subspace.whole(8, group_size=4)
    with pytest.raises(AlgebraError, match="cannot be split into 5"):
        Subspace.split(8, 5, group_size=2)
