"""The algebra of the blocks: laws under hypothesis, numpy's dense matrices as the yardstick, and what does not exist."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roadkit.errors import AlgebraError
from roadkit.matrices import condition, inverse, power, product, worst_block
from roadkit.rotation import VARIANTS, is_scaled_rotation, lower, rotate
from tests.conftest import TOLERANCE, random_parameters

seeds = st.integers(0, 2**32 - 1)
variants = st.sampled_from(VARIANTS)
shapes = st.sampled_from([(2, 2), (6, 2), (6, 6), (24, 4), (24, 12), (64, 2), (64, 16), (64, 64), (192, 6)])  # d, g
strengths = st.floats(-3, 3).map(lambda w: round(w, 3))
quick = settings(max_examples=40)


def blocks(variant: str, width: int, group_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Lowered in float64, so that laws can be checked far below float32's rounding."""
    theta, alpha = random_parameters(variant, width, group_size, seed)
    return lower(variant, theta.double(), alpha.double(), group_size)


def matrix(a: Tensor, b: Tensor, group_size: int) -> Tensor:
    """The dense d×d matrix, column by column."""
    return rotate(torch.eye(len(a), dtype=torch.float64), a, b, group_size).T


def pairs(a: Tensor, b: Tensor, group_size: int) -> np.ndarray:
    """[pairs, 2, 2], in the order in which pairs are numbered."""
    a_lo, a_hi = a.double().view(-1, 2, group_size // 2).unbind(1)
    b_lo, b_hi = b.double().view(-1, 2, group_size // 2).unbind(1)
    return torch.stack([a_lo, b_lo, b_hi, a_hi], dim=-1).view(-1, 2, 2).numpy()


def vectors(*entries: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
    """2×2 blocks → (a, b) with group size 2."""
    table = torch.tensor(entries, dtype=torch.float64)
    return torch.stack([table[:, 0, 0], table[:, 1, 1]], 1).view(-1), torch.stack(
        [table[:, 0, 1], table[:, 1, 0]], 1
    ).view(-1)


@quick
@given(variants, variants, shapes, seeds)
def test_product_is_applying_in_turn(one, other, shape, seed):
    width, group_size = shape
    first, then = blocks(one, width, group_size, seed), blocks(other, width, group_size, seed + 1)
    h = torch.randn(3, width, dtype=torch.float64)
    expected = rotate(rotate(h, *first, group_size), *then, group_size)
    actual = rotate(h, *product(first, then, group_size), group_size)
    torch.testing.assert_close(actual, expected, **TOLERANCE[torch.float64])


@quick
@given(variants, shapes, seeds)
def test_inverse_undoes(variant, shape, seed):
    width, group_size = shape
    a, b = blocks(variant, width, group_size, seed)
    worst = worst_block(a, b, group_size).condition
    if worst > 1e4:
        return
    undone = product((a, b), inverse(a, b, group_size), group_size)
    torch.testing.assert_close(undone[0], torch.ones_like(a), rtol=0, atol=1e-11 * worst)
    torch.testing.assert_close(undone[1], torch.zeros_like(b), rtol=0, atol=1e-11 * worst)


@quick
@given(shapes, seeds)
def test_scaled_rotations_commute(shape, seed):
    width, group_size = shape
    one, other = blocks("road_1", width, group_size, seed), blocks("road_1", width, group_size, seed + 1)
    there, back = product(one, other, group_size), product(other, one, group_size)
    assert is_scaled_rotation(*there, group_size).all()
    for x, y in zip(there, back, strict=True):
        torch.testing.assert_close(x, y, **TOLERANCE[torch.float64])


@quick
@given(shapes, seeds)
def test_condition_is_the_ratio_of_singular_values(shape, seed):
    width, group_size = shape
    a, b = blocks("road_2", width, group_size, seed)
    singular = np.linalg.svd(pairs(a, b, group_size), compute_uv=False)
    expected = singular[:, 0] / singular[:, 1]
    np.testing.assert_allclose(condition(a, b, group_size).numpy(), expected, rtol=1e-5)
    assert worst_block(a, b, group_size).pair == expected.argmax()


def test_singular_blocks_are_not_inverted():
    fine, flat, near = [[1, 0], [0, 1]], [[1, 2], [2, 4]], [[1, 1], [1, 1 + 1e-7]]
    with pytest.raises(AlgebraError, match="condition number inf exceeds 1e") as caught:
        inverse(*vectors(fine, flat, near), 2)
    assert caught.value.pair == 1
    with pytest.raises(AlgebraError, match=r"condition number 4e\+07 exceeds 1e\+06") as caught:
        inverse(*vectors(fine, fine, near), 2)
    assert caught.value.pair == 2


def real_powers_exist(a: Tensor, b: Tensor, group_size: int) -> bool:
    """No eigenvalue on or too near the negative axis, and none near zero."""
    values = np.linalg.eigvals(pairs(a, b, group_size))
    return bool((np.abs(np.angle(values)) < 3).all() and (np.abs(values) > 0.05).all())


@quick
@given(variants, shapes, seeds, strengths)
def test_power_agrees_with_eigenvalues(variant, shape, seed, strength):
    width, group_size = shape
    a, b = blocks(variant, width, group_size, seed)
    if not real_powers_exist(a, b, group_size):
        return
    values, columns = np.linalg.eig(pairs(a, b, group_size))
    if np.linalg.cond(columns).max() > 1e3:
        return  # nearly equal eigenvalues, for which this yardstick is too coarse
    expected = (columns * values.astype(complex)[:, None, :] ** strength) @ np.linalg.inv(columns)
    np.testing.assert_allclose(
        pairs(*power(a, b, strength, group_size), group_size), expected.real, rtol=1e-7, atol=1e-8
    )


@quick
@given(variants, shapes, seeds, strengths, strengths)
def test_strengths_add(variant, shape, seed, one, other):
    width, group_size = shape
    a, b = blocks(variant, width, group_size, seed)
    if not real_powers_exist(a, b, group_size):
        return
    both = product(power(a, b, one, group_size), power(a, b, other, group_size), group_size)
    together = power(a, b, one + other, group_size)
    for x, y in zip(both, together, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7 * float(together[0].abs().max()))


@quick
@given(shapes, seeds, st.floats(0.01, 1), st.floats(-1, 1))
def test_powers_of_powers_multiply_on_the_principal_branch(shape, seed, one, other):
    width, group_size = shape
    a, b = blocks("road_1", width, group_size, seed)  # |w| <= 1 keeps the angle within (-pi, pi]
    if not real_powers_exist(a, b, group_size):
        return
    twice = power(*power(a, b, one, group_size), other, group_size)
    for x, y in zip(twice, power(a, b, one * other, group_size), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-8)


@quick
@given(variants, shapes, seeds, st.integers(-4, 6))
def test_integer_powers_are_repeated_products(variant, shape, seed, count):
    width, group_size = shape
    a, b = blocks(variant, width, group_size, seed)
    if worst_block(a, b, group_size).condition > 100:
        return
    dense = torch.linalg.matrix_power(matrix(a, b, group_size), count)
    actual = matrix(*power(a, b, count, group_size), group_size)
    torch.testing.assert_close(actual, dense, rtol=1e-6, atol=1e-9 * float(dense.abs().max()))


@pytest.mark.parametrize("group_size", [2, 4, 8])
def test_road_1_power_scales_the_angle_and_raises_alpha(group_size):
    theta, alpha = torch.linspace(-3, 3, 4).double(), torch.linspace(0.5, 2, 4).double()
    actual = power(*lower("road_1", theta, alpha, group_size), 0.3, group_size)
    expected = lower("road_1", 0.3 * theta, alpha**0.3, group_size)
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, **TOLERANCE[torch.float64])


def test_negative_alpha_is_half_a_turn():
    for entry in ([[-4, 0.0], [0.0, -4]], [[-4, 0.0], [-0.0, -4]], [[-4, -0.0], [0.0, -4]]):
        half = power(*vectors(entry), 0.5, 2)
        np.testing.assert_allclose(pairs(*half, 2)[0], [[0, -2], [2, 0]], atol=1e-12)
        np.testing.assert_allclose(pairs(*product(half, half, 2), 2)[0], [[-4, 0], [0, -4]], atol=1e-12)
    theta, alpha = torch.tensor([[0.0, 0.5, -0.5], [-2.0, -2.0, -2.0]], dtype=torch.float64)
    turned = torch.tensor([math.pi, 0.5 - math.pi, math.pi - 0.5], dtype=torch.float64)
    expected = lower("road_1", turned / 2, alpha.abs().sqrt(), 2)
    for x, y in zip(power(*lower("road_1", theta, alpha, 2), 0.5, 2), expected, strict=True):
        torch.testing.assert_close(x, y, **TOLERANCE[torch.float64])


@pytest.mark.parametrize(
    "entry",
    [
        [[1, 0], [0, -1]],  # a mirror
        [[-1, 0], [0, -2]],  # two different negative eigenvalues
        [[-1, 1], [0, -1]],  # one negative eigenvalue, not a multiple of the identity
        [[1, 1], [1, 1]],  # singular
        [[0, 0], [0, 0]],
    ],
)
def test_blocks_without_a_real_root_have_integer_powers_only(entry):
    fine = [[1, 0.5], [-0.5, 1]]
    a, b = vectors(fine, entry, fine)
    with pytest.raises(AlgebraError, match="no real power 0.5") as caught:
        power(a, b, 0.5, 2)
    assert caught.value.pair == 1
    for count in (0, 1, 2, 3):
        expected = np.linalg.matrix_power(np.array(entry, dtype=float), count)
        np.testing.assert_allclose(pairs(*power(a, b, count, 2), 2)[1], expected, atol=1e-12)


def test_shears_have_real_powers():
    np.testing.assert_allclose(
        pairs(*power(*vectors([[2, 1], [0, 2]]), 0.5, 2), 2)[0], [[2**0.5, 2**-1.5], [0, 2**0.5]]
    )


@pytest.mark.parametrize("strength", [-1, -2, -0.5])
def test_near_singular_blocks_have_no_negative_powers(strength):
    with pytest.raises(AlgebraError, match=r"condition number 4e\+07"):
        power(*vectors([[1, 1], [1, 1 + 1e-7]]), strength, 2)


def test_nothing_and_one_are_neutral_powers():
    a, b = blocks("road_2", 24, 6, 3)
    assert power(a, b, 1.0, 6) == (a, b)
    none = power(a, b, 0, 6)
    assert torch.equal(none[0], torch.ones(24).double())
    assert torch.equal(none[1], torch.zeros(24).double())
