"""The algebra of 2×2 matrices that adapters consist of: products, inverses, real powers, logarithms.

    both = product(formal, german, 2)          # formal first, german on its result; each is (a, b)
    a, b = power(*formal, 0.5, 2)              # half the strength

Vectors a and b [d] hold one matrix for each pair, its block M = [[a_lo, b_lo], [b_hi, a_hi]]; `roadkit.rotation` says which
outputs pair. Pairs are numbered group by group. Scaled rotations c·R(θ) are complex numbers, so they commute and nearly
everything exists for them. General blocks are handled by their eigenvalues m ± √gap, with m = (a_lo + a_hi)/2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import AlgebraError
from .rotation import is_scaled_rotation, join_pairs, split_pairs, swap

MAX_CONDITION = 1e6  # a block worse than this is not inverted in float32


class Block(NamedTuple):
    """One block of a vector pair: the number of its pair and its condition number."""

    pair: int
    condition: float


def product(first: tuple[Tensor, Tensor], then: tuple[Tensor, Tensor], group_size: int) -> tuple[Tensor, Tensor]:
    """(a, b) of the block products: rotating by `first` and then by `then` equals rotating once by the result."""
    (a1, b1), (a2, b2) = first, then
    return a2 * a1 + b2 * swap(b1, group_size), a2 * b1 + b2 * swap(a1, group_size)


def condition(a: Tensor, b: Tensor, group_size: int) -> Tensor:
    """Condition number of every block, [pairs] float64: largest over smallest singular value, inf if singular."""
    a_lo, a_hi = split_pairs(a.double(), group_size)
    b_lo, b_hi = split_pairs(b.double(), group_size)
    frobenius = a_lo**2 + a_hi**2 + b_lo**2 + b_hi**2
    determinant = a_lo * a_hi - b_lo * b_hi
    root = (frobenius**2 - 4 * determinant**2).clamp_min(0).sqrt()
    values = torch.where(determinant == 0, torch.inf, (frobenius + root) / (2 * determinant.abs()))
    return values.reshape(-1)


def worst_block(a: Tensor, b: Tensor, group_size: int) -> Block:
    """The block with the largest condition number."""
    value, pair = condition(a, b, group_size).max(dim=0)
    return Block(int(pair), float(value))


def inverse(a: Tensor, b: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """(a, b) of the inverses. Raises `AlgebraError` if a block's condition number exceeds `MAX_CONDITION`."""
    _check_invertible(a, b, group_size)
    wide_a, wide_b = a.double(), b.double()
    swapped = swap(wide_a, group_size)
    determinant = wide_a * swapped - wide_b * swap(wide_b, group_size)
    return (swapped / determinant).to(a.dtype), (-wide_b / determinant).to(b.dtype)


def power(a: Tensor, b: Tensor, exponent: float, group_size: int) -> tuple[Tensor, Tensor]:
    """(a, b) of the real matrix powers M^w, principal branch, in the dtype of a and b.

    A scaled rotation c·R(θ) becomes c^w·R(w·θ) with θ in (−π, π]. Integer powers always exist, but negative ones need
    an invertible block. A fractional power exists if the block has no eigenvalue on (−∞, 0]; −c·I is the exception and
    reads as c·R(π). Raises `AlgebraError` naming the first pair whose power does not exist.
    """
    if exponent == 1:
        return a, b
    if float(exponent).is_integer():
        return _integer_power(a, b, int(exponent), group_size)
    if exponent < 0:
        _check_invertible(a, b, group_size)
    rotations = is_scaled_rotation(a, b, group_size)
    out_a, out_b = _power_of_rotations(a, b, exponent, group_size)
    if not rotations.all():
        general_a, general_b = _power_of_blocks(a, b, exponent, group_size)
        keep = join_pairs(*[rotations.view(-1, group_size // 2)] * 2)
        out_a, out_b = torch.where(keep, out_a, general_a), torch.where(keep, out_b, general_b)
    if (missing := (out_a + out_b).isnan()).any():
        raise AlgebraError(
            f"its block has no real power {exponent:g}, for an eigenvalue is zero or negative; integer powers exist",
            pair=_first_pair(missing, group_size),
        )
    return out_a.to(a.dtype), out_b.to(b.dtype)


def logarithm(a: Tensor, b: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """(a, b) of the matrix logarithms log M, principal branch, float64. `exponential` undoes it.

    A scaled rotation has log c·R(θ) = [[ln c, −θ], [θ, ln c]] with θ in (−π, π]. All other blocks have
    log M = ln r·I + φ/sin φ (M − mI)/r, see `_power_of_blocks`.
    Raises `AlgebraError` naming the first pair whose block has no real logarithm.
    """
    a_lo, a_hi = split_pairs(a.double(), group_size)
    b_lo, b_hi = split_pairs(b.double(), group_size)
    mean, gap, radius, angle, stretch = _spectrum(a_lo, a_hi, b_lo, b_hi)
    ratio = torch.where(gap > 0, 1 / _ratio_to(torch.sinh, stretch), 1 / _ratio_to(torch.sin, angle)) / radius
    scale = radius.log()
    out_a = join_pairs(scale + ratio * (a_lo - mean), scale + ratio * (a_hi - mean))
    out_b = join_pairs(ratio * b_lo, ratio * b_hi)
    rotations = is_scaled_rotation(a, b, group_size)
    if rotations.any():
        turn = torch.atan2(b_hi + 0.0, a_lo)
        size = torch.where((a_lo != 0) | (b_hi != 0), torch.hypot(a_lo, b_hi), torch.nan).log()
        keep = join_pairs(*[rotations.view(-1, group_size // 2)] * 2)
        out_a = torch.where(keep, join_pairs(size, size), out_a)
        out_b = torch.where(keep, join_pairs(-turn, turn), out_b)
    if (missing := (out_a + out_b).isnan()).any():
        raise AlgebraError(
            "its block has no real logarithm, for an eigenvalue is zero or negative",
            pair=_first_pair(missing, group_size),
        )
    return out_a, out_b


def exponential(a: Tensor, b: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """(a, b) of the matrix exponentials of blocks L, float64: exp L = e^m (cosh √gap I + sinh √gap/√gap (L − mI))."""
    a_lo, a_hi = split_pairs(a.double(), group_size)
    b_lo, b_hi = split_pairs(b.double(), group_size)
    mean = (a_lo + a_hi) / 2
    gap = ((a_lo - a_hi) / 2) ** 2 + b_lo * b_hi
    root = gap.abs().sqrt()
    real = torch.where(gap > 0, torch.cosh(root), torch.cos(root))
    ratio = torch.where(gap > 0, _ratio_to(torch.sinh, root), _ratio_to(torch.sin, root))
    scale = mean.exp()
    real, ratio = scale * real, scale * ratio
    out_a = join_pairs(real + ratio * (a_lo - mean), real + ratio * (a_hi - mean))
    return out_a, join_pairs(ratio * b_lo, ratio * b_hi)


def _check_invertible(a: Tensor, b: Tensor, group_size: int) -> None:
    worst = worst_block(a, b, group_size)
    if worst.condition > MAX_CONDITION:
        raise AlgebraError(
            f"its block cannot be inverted: condition number {worst.condition:.3g} exceeds {MAX_CONDITION:.0e}",
            pair=worst.pair,
        )


def _integer_power(a: Tensor, b: Tensor, exponent: int, group_size: int) -> tuple[Tensor, Tensor]:
    if exponent < 0:
        base_a, base_b = inverse(a.double(), b.double(), group_size)
    else:
        base_a, base_b = a.double(), b.double()
    base, result = (base_a, base_b), (torch.ones_like(base_a), torch.zeros_like(base_b))
    remaining = abs(exponent)
    while remaining:
        if remaining & 1:
            result = product(result, base, group_size)
        base, remaining = product(base, base, group_size), remaining >> 1
    return result[0].to(a.dtype), result[1].to(b.dtype)


def _power_of_rotations(a: Tensor, b: Tensor, exponent: float, group_size: int) -> tuple[Tensor, Tensor]:
    """Powers of blocks c·R(θ): c^w·R(w·θ), θ in (−π, π]; float64. NaN if c = 0."""
    a_lo, b_hi = split_pairs(a.double(), group_size)[0], split_pairs(b.double(), group_size)[1]
    b_hi = b_hi + 0.0  # −0 becomes 0, so that −c·I is half a turn forward however its zeros are signed
    squared, angle = a_lo * a_lo + b_hi * b_hi, exponent * torch.atan2(b_hi, a_lo)
    scale = torch.where(squared > 0, squared, torch.nan) ** (exponent / 2)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    return join_pairs(cosine, cosine), join_pairs(-sine, sine)


def _power_of_blocks(a: Tensor, b: Tensor, exponent: float, group_size: int) -> tuple[Tensor, Tensor]:
    """Powers of general blocks M with mean eigenvalue m and determinant r²; float64. NaN if no power is real.

    M^w = r^w (cos(wφ) I + sin(wφ)/sin(φ) (M − mI)/r) with cos φ = m/r. If the eigenvalues are real, cosh and sinh take
    the place of cos and sin.
    """
    a_lo, a_hi = split_pairs(a.double(), group_size)
    b_lo, b_hi = split_pairs(b.double(), group_size)
    mean, gap, radius, angle, stretch = _spectrum(a_lo, a_hi, b_lo, b_hi)
    real = torch.where(gap > 0, torch.cosh(exponent * stretch), torch.cos(exponent * angle))
    ratio = torch.where(gap > 0, _ratio(torch.sinh, exponent, stretch), _ratio(torch.sin, exponent, angle))
    scale = radius**exponent
    real, ratio = scale * real, scale * ratio / radius
    return (
        join_pairs(real + ratio * (a_lo - mean), real + ratio * (a_hi - mean)),
        join_pairs(ratio * b_lo, ratio * b_hi),
    )


def _spectrum(a_lo: Tensor, a_hi: Tensor, b_lo: Tensor, b_hi: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the powers of blocks need, one entry a pair: mean, gap, radius, angle, stretch.

    mean     m, the mean of the eigenvalues m ± √gap
    gap      positive if the eigenvalues are real, negative if they are complex
    radius   r = √determinant; NaN if the block has no real logarithm
    angle    φ with cos φ = m/r, for complex eigenvalues
    stretch  φ with cosh φ = m/r, for real eigenvalues
    """
    mean = (a_lo + a_hi) / 2
    gap = ((a_lo - a_hi) / 2) ** 2 + b_lo * b_hi
    determinant = a_lo * a_hi - b_lo * b_hi
    radius = torch.where((determinant > 0) & ((gap < 0) | (mean > 0)), determinant, torch.nan).sqrt()
    angle = torch.atan2((-gap).clamp_min(0).sqrt(), mean)
    stretch = torch.atanh((gap.clamp_min(0).sqrt() / mean).clamp(-1, 1))
    return mean, gap, radius, angle, stretch


def _ratio(function: Callable[[Tensor], Tensor], exponent: float, x: Tensor) -> Tensor:
    """function(exponent·x) / function(x), continued by `exponent` at x = 0."""
    small = x.abs() < 1e-8
    safe = torch.where(small, torch.ones_like(x), x)
    return torch.where(small, torch.full_like(x, exponent), function(exponent * safe) / function(safe))


def _ratio_to(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x) / x, continued by 1 at x = 0."""
    small = x.abs() < 1e-8
    return torch.where(small, torch.ones_like(x), function(x) / torch.where(small, torch.ones_like(x), x))


def _first_pair(marked: Tensor, group_size: int) -> int:
    """The first pair with a marked member."""
    return int(torch.logical_or(*split_pairs(marked, group_size)).reshape(-1).nonzero()[0])
