"""The convention: which outputs pair, what the variants mean, and the algebra of the 2×2 blocks.

A layer's output h [d] is cut into groups of `group_size` g; inside a group, output i of the first half (lo) pairs with
output i + g/2 (hi). RoAd (arXiv 2409.00119, eq. 2-4) multiplies every pair by a 2×2 block

    z_lo = α11 cos θ11 · h_lo − α12 sin θ12 · h_hi
    z_hi = α21 sin θ21 · h_lo + α22 cos θ22 · h_hi

which this module lowers to two vectors of length d, signs folded in:  z = a ⊙ h + b ⊙ swap(h).

    # theta = 90° sends (1, 0) to (0, 1): with g = 2, theta = [pi/2], alpha = [1]:  a = [0, 0], b = [-1, 1]
    >>> a, b = lower("road_1", torch.tensor([math.pi / 2]), torch.ones(1), 2)
    >>> rotate(torch.tensor([1.0, 0.0]), a, b, 2)
    tensor([0., 1.])

Everything here is a pure function on flat vectors, so many layers laid end to end are handled in one call.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import AlgebraError

VARIANTS = ("road_1", "road_2", "road_4")
MAX_CONDITION = 1e6  # a block worse than this is not inverted in float32
SCALED_ROTATION_TOLERANCE = 1e-6  # relative; how far a block may be from c·R(θ) and still count as one


class Block(NamedTuple):
    """The worst 2×2 block of a vector pair: its pair number and its condition number."""

    pair: int
    condition: float


def check_group_size(width: int, group_size: int, name: str = "layer") -> None:
    """Refuse widths that cannot be paired. Raises `AlgebraError` naming `name`, the width and the group size."""
    if group_size < 2 or group_size % 2:
        raise AlgebraError(f"{name}: group_size must be an even number of at least 2, got {group_size}")
    if width % 2:
        raise AlgebraError(f"{name}: width {width} is odd, its outputs cannot be paired")
    if width % group_size:
        fitting = math.gcd(width, group_size)
        mend = f"; group_size={fitting} would fit" if fitting % 2 == 0 else "; group_size=2 always fits an even width"
        raise AlgebraError(f"{name}: width {width} is not a multiple of group_size {group_size}{mend}")


def num_parameters(variant: str, width: int) -> int:
    """Length of θ (and of α) of one layer of output `width` (paper, table 1: d, 2d, 4d trainable in all)."""
    return {"road_1": width // 2, "road_2": width, "road_4": 2 * width}[variant]


def layer_width(variant: str, count: int, group_size: int, name: str = "layer") -> int:
    """Output width of the layer that has `count` angles. Raises `AlgebraError` naming `name` where there is none."""
    if variant not in VARIANTS:
        raise AlgebraError(f"unknown variant {variant!r}; use one of {', '.join(VARIANTS)}")
    width = {"road_1": 2 * count, "road_2": count, "road_4": count // 2}[variant]
    if not width or num_parameters(variant, width) != count:
        raise AlgebraError(f"{name}: {count} entries fit no {variant} layer")
    check_group_size(width, group_size, name)
    return width


def swap(x: Tensor, group_size: int) -> Tensor:
    """Exchange the two members of every pair along the last dimension."""
    grouped = x.unflatten(-1, (-1, 2, group_size // 2))  # [..., groups, 2, g/2]
    return grouped.flip(-2).flatten(-3)


def rotate(h: Tensor, a: Tensor, b: Tensor, group_size: int) -> Tensor:
    """`z = a ⊙ h + b ⊙ swap(h)`; h [..., d], a and b [d] or broadcastable. Returns h's dtype, computed in ≥ float32."""
    wide = h if h.dtype == torch.float64 else h.float()
    return (a * wide + b * swap(wide, group_size)).to(h.dtype)


def lower(variant: str, theta: Tensor, alpha: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """θ (radians) and α of any variant → (a, b), each [d]. Differentiable; float32 or better.

    Parameter layout is PEFT's: road_1 one entry a pair, road_2 one an output, road_4 per group g entries of the
    first column (α11, α22 with cosines) and then g of the second (α12, α21 with sines).
    """
    if theta.dtype not in (torch.float32, torch.float64):
        theta, alpha = theta.float(), alpha.float()
    half = group_size // 2
    if variant == "road_4":
        theta_cos, theta_sin = theta.view(-1, 2, 2, half).unbind(1)  # [groups, 2, g/2] each
        alpha_cos, alpha_sin = alpha.view(-1, 2, 2, half).unbind(1)
    elif variant == "road_2":
        theta_cos = theta_sin = theta.view(-1, 2, half)
        alpha_cos = alpha_sin = alpha.view(-1, 2, half)
    elif variant == "road_1":
        a, sine = (alpha * theta.cos()).view(-1, 1, half), (alpha * theta.sin()).view(-1, 1, half)
        return a.expand(-1, 2, half).reshape(-1), torch.cat([-sine, sine], dim=1).view(-1)
    else:
        raise AlgebraError(f"unknown variant {variant!r}; use one of {', '.join(VARIANTS)}")
    sine = alpha_sin * theta_sin.sin()
    return (alpha_cos * theta_cos.cos()).reshape(-1), torch.stack([-sine[:, 0], sine[:, 1]], dim=1).reshape(-1)


def raise_to_parameters(a: Tensor, b: Tensor, group_size: int) -> tuple[str, Tensor, Tensor]:
    """(a, b) → the smallest variant that holds them, with its θ and α; `lower` gives them back within 1e-6."""
    a_lo, a_hi = _members(a, group_size)
    b_lo, b_hi = _members(b, group_size)
    if is_scaled_rotation(a, b, group_size).all():
        return "road_1", torch.atan2(b_hi, a_lo).reshape(-1), torch.hypot(a_lo, b_hi).reshape(-1)
    theta = torch.stack([torch.atan2(-b_lo, a_lo), torch.atan2(b_hi, a_hi)], dim=-2)
    alpha = torch.stack([torch.hypot(a_lo, b_lo), torch.hypot(a_hi, b_hi)], dim=-2)
    return "road_2", theta.reshape(-1), alpha.reshape(-1)


def product(first: tuple[Tensor, Tensor], then: tuple[Tensor, Tensor], group_size: int) -> tuple[Tensor, Tensor]:
    """Block product: rotating by `first`, then by `then`, equals rotating once by the result."""
    (a1, b1), (a2, b2) = first, then
    return a2 * a1 + b2 * swap(b1, group_size), a2 * b1 + b2 * swap(a1, group_size)


def is_scaled_rotation(a: Tensor, b: Tensor, group_size: int) -> Tensor:
    """Per pair [pairs]: is the block c·R(θ), within 1e-6 of its size? Such blocks commute."""
    a_lo, a_hi = _members(a, group_size)
    b_lo, b_hi = _members(b, group_size)
    size = torch.maximum(torch.hypot(a_lo, b_lo), torch.hypot(a_hi, b_hi))
    off = torch.maximum((a_lo - a_hi).abs(), (b_lo + b_hi).abs())
    return (off <= SCALED_ROTATION_TOLERANCE * size).reshape(-1)


def condition(a: Tensor, b: Tensor, group_size: int) -> Tensor:
    """Condition number (largest over smallest singular value) of every block, [pairs], float64; inf where singular."""
    a_lo, a_hi = _members(a.double(), group_size)
    b_lo, b_hi = _members(b.double(), group_size)
    frobenius = a_lo**2 + a_hi**2 + b_lo**2 + b_hi**2
    determinant = a_lo * a_hi - b_lo * b_hi
    root = (frobenius**2 - 4 * determinant**2).clamp_min(0).sqrt()
    values = torch.where(determinant == 0, torch.inf, (frobenius + root) / (2 * determinant.abs()))
    return values.reshape(-1)


def worst_block(a: Tensor, b: Tensor, group_size: int) -> Block:
    """The pair with the largest condition number; pairs are numbered group by group."""
    value, pair = condition(a, b, group_size).max(dim=0)
    return Block(int(pair), float(value))


def inverse(a: Tensor, b: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Block inverse. Raises `AlgebraError` where a block's condition number exceeds `MAX_CONDITION`."""
    _check_invertible(a, b, group_size)
    wide_a, wide_b = a.double(), b.double()
    swapped = swap(wide_a, group_size)
    determinant = wide_a * swapped - wide_b * swap(wide_b, group_size)
    return (swapped / determinant).to(a.dtype), (-wide_b / determinant).to(b.dtype)


def _check_invertible(a: Tensor, b: Tensor, group_size: int) -> None:
    worst = worst_block(a, b, group_size)
    if worst.condition > MAX_CONDITION:
        raise AlgebraError(
            f"its block cannot be inverted: condition number {worst.condition:.3g} exceeds {MAX_CONDITION:.0e}",
            pair=worst.pair,
        )


def power(a: Tensor, b: Tensor, exponent: float, group_size: int) -> tuple[Tensor, Tensor]:
    """Real matrix power of every block, principal branch.

    A scaled rotation c·R(θ) becomes c^w·R(w·θ) with θ in (−π, π]. Integer powers always exist (negative ones need
    an invertible block). A fractional power needs a block without eigenvalues on (−∞, 0], except −c·I, which reads
    as c·R(π); otherwise `AlgebraError` names the pair.
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
        keep = _join(*[rotations.view(-1, group_size // 2)] * 2)
        out_a, out_b = torch.where(keep, out_a, general_a), torch.where(keep, out_b, general_b)
    if (missing := (out_a + out_b).isnan()).any():
        raise AlgebraError(
            f"its block has no real power {exponent:g}, for an eigenvalue is zero or negative; integer powers exist",
            pair=_first_pair(missing, group_size),
        )
    return out_a.to(a.dtype), out_b.to(b.dtype)


def logarithm(a: Tensor, b: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Principal logarithm of every block, as (a, b) of the matrix log M; float64. `exponential` undoes it.

    log c·R(θ) = [[ln c, −θ], [θ, ln c]], θ in (−π, π]. Elsewhere log M = ln r·I + φ/sin φ (M − mI)/r, see
    `_power_of_blocks`. Raises `AlgebraError` naming a pair whose block has no real logarithm.
    """
    a_lo, a_hi = _members(a.double(), group_size)
    b_lo, b_hi = _members(b.double(), group_size)
    mean, gap, radius, angle, stretch = _spectrum(a_lo, a_hi, b_lo, b_hi)
    ratio = torch.where(gap > 0, 1 / _ratio_to(torch.sinh, stretch), 1 / _ratio_to(torch.sin, angle)) / radius
    scale = radius.log()
    out_a = _join(scale + ratio * (a_lo - mean), scale + ratio * (a_hi - mean))
    out_b = _join(ratio * b_lo, ratio * b_hi)
    rotations = is_scaled_rotation(a, b, group_size)
    if rotations.any():
        turn = torch.atan2(b_hi + 0.0, a_lo)
        size = torch.where((a_lo != 0) | (b_hi != 0), torch.hypot(a_lo, b_hi), torch.nan).log()
        keep = _join(*[rotations.view(-1, group_size // 2)] * 2)
        out_a = torch.where(keep, _join(size, size), out_a)
        out_b = torch.where(keep, _join(-turn, turn), out_b)
    if (missing := (out_a + out_b).isnan()).any():
        raise AlgebraError(
            "its block has no real logarithm, for an eigenvalue is zero or negative",
            pair=_first_pair(missing, group_size),
        )
    return out_a, out_b


def exponential(a: Tensor, b: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Matrix exponential of every block given as (a, b): e^m (cosh √g I + sinh √g/√g (L − mI)), g the gap; float64."""
    a_lo, a_hi = _members(a.double(), group_size)
    b_lo, b_hi = _members(b.double(), group_size)
    mean = (a_lo + a_hi) / 2
    gap = ((a_lo - a_hi) / 2) ** 2 + b_lo * b_hi
    root = gap.abs().sqrt()
    real = torch.where(gap > 0, torch.cosh(root), torch.cos(root))
    ratio = torch.where(gap > 0, _ratio_to(torch.sinh, root), _ratio_to(torch.sin, root))
    scale = mean.exp()
    real, ratio = scale * real, scale * ratio
    out_a = _join(real + ratio * (a_lo - mean), real + ratio * (a_hi - mean))
    return out_a, _join(ratio * b_lo, ratio * b_hi)


def turn(a: Tensor, b: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Per pair [pairs]: the angle (radians, in (−π, π]) of the block's rotation part, and ln of its scale √|det|.

    The rotation part is the polar decomposition's, the nearest rotation; for c·R(θ) these are θ and ln c.
    """
    a_lo, a_hi = _members(a, group_size)
    b_lo, b_hi = _members(b, group_size)
    angle = torch.atan2(b_hi - b_lo, a_lo + a_hi)
    scale = (a_lo * a_hi - b_lo * b_hi).abs().clamp_min(1e-30).log() / 2
    return angle.reshape(-1), scale.reshape(-1)


def _power_of_rotations(a: Tensor, b: Tensor, exponent: float, group_size: int) -> tuple[Tensor, Tensor]:
    """Powers of blocks c·R(θ): c^w·R(w·θ), θ in (−π, π]; float64. NaN where c = 0."""
    a_lo, b_hi = _members(a.double(), group_size)[0], _members(b.double(), group_size)[1]
    b_hi = b_hi + 0.0  # −0 becomes 0, so that −c·I is half a turn forward however its zeros are signed
    squared, angle = a_lo * a_lo + b_hi * b_hi, exponent * torch.atan2(b_hi, a_lo)
    scale = torch.where(squared > 0, squared, torch.nan) ** (exponent / 2)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    return _join(cosine, cosine), _join(-sine, sine)


def _power_of_blocks(a: Tensor, b: Tensor, exponent: float, group_size: int) -> tuple[Tensor, Tensor]:
    """Powers of general blocks M with mean eigenvalue m and determinant r²; float64. NaN where none is real.

    M^w = r^w (cos(wφ) I + sin(wφ)/sin(φ) (M − mI)/r) with cos φ = m/r; cosh and sinh where the eigenvalues are real.
    """
    a_lo, a_hi = _members(a.double(), group_size)
    b_lo, b_hi = _members(b.double(), group_size)
    mean, gap, radius, angle, stretch = _spectrum(a_lo, a_hi, b_lo, b_hi)
    real = torch.where(gap > 0, torch.cosh(exponent * stretch), torch.cos(exponent * angle))
    ratio = torch.where(gap > 0, _ratio(torch.sinh, exponent, stretch), _ratio(torch.sin, exponent, angle))
    scale = radius**exponent
    real, ratio = scale * real, scale * ratio / radius
    return (
        _join(real + ratio * (a_lo - mean), real + ratio * (a_hi - mean)),
        _join(ratio * b_lo, ratio * b_hi),
    )


def _spectrum(a_lo: Tensor, a_hi: Tensor, b_lo: Tensor, b_hi: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mean m of the eigenvalues m ± √gap, gap, √determinant r (NaN without a real logarithm), and φ with cos φ = m/r.

    φ is an angle where the eigenvalues are complex, and a hyperbolic one (the last) where they are real.
    """
    mean = (a_lo + a_hi) / 2
    gap = ((a_lo - a_hi) / 2) ** 2 + b_lo * b_hi
    determinant = a_lo * a_hi - b_lo * b_hi
    radius = torch.where((determinant > 0) & ((gap < 0) | (mean > 0)), determinant, torch.nan).sqrt()
    angle = torch.atan2((-gap).clamp_min(0).sqrt(), mean)
    stretch = torch.atanh((gap.clamp_min(0).sqrt() / mean).clamp(-1, 1))
    return mean, gap, radius, angle, stretch


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


def _ratio(function, exponent: float, x: Tensor) -> Tensor:
    """function(exponent·x) / function(x), continued by `exponent` at x = 0."""
    small = x.abs() < 1e-8
    safe = torch.where(small, torch.ones_like(x), x)
    return torch.where(small, torch.full_like(x, exponent), function(exponent * safe) / function(safe))


def _ratio_to(function, x: Tensor) -> Tensor:
    """function(x) / x, continued by 1 at x = 0."""
    small = x.abs() < 1e-8
    return torch.where(small, torch.ones_like(x), function(x) / torch.where(small, torch.ones_like(x), x))


def _members(x: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """[d] → the first and the second member of every pair, each [groups, g/2]."""
    lo, hi = x.view(-1, 2, group_size // 2).unbind(1)
    return lo, hi


def _first_pair(marked: Tensor, group_size: int) -> int:
    """The first pair with a marked member, numbered group by group."""
    return int(torch.logical_or(*_members(marked, group_size)).reshape(-1).nonzero()[0])


def _join(lo: Tensor, hi: Tensor) -> Tensor:
    return torch.stack([lo, hi], dim=1).reshape(-1)
