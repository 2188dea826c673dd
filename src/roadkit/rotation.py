"""The convention: which outputs of a layer pair, what the variants of RoAd mean, and how both become two vectors.

A layer's output h [d] is cut into groups of `group_size` g. Inside a group, output i of the first half (lo) pairs with
output i + g/2 (hi). RoAd (arXiv 2409.00119, eq. 2-4) multiplies every pair by a 2×2 block:

    z_lo = α11 cos θ11 · h_lo − α12 sin θ12 · h_hi
    z_hi = α21 sin θ21 · h_lo + α22 cos θ22 · h_hi

`lower` turns θ and α of any variant into two vectors of length d, signs folded in: z = a ⊙ h + b ⊙ swap(h).

    # theta = 90° sends (1, 0) to (0, 1): with g = 2, theta = [pi/2], alpha = [1]:  a = [0, 0], b = [-1, 1]
    >>> a, b = lower("road_1", torch.tensor([math.pi / 2]), torch.ones(1), 2)
    >>> rotate(torch.tensor([1.0, 0.0]), a, b, 2)
    tensor([0., 1.])

All functions are pure and work on flat vectors, so many layers laid end to end take one call. `roadkit.matrices` computes
products, inverses and powers of the blocks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .errors import AlgebraError

VARIANTS = ("road_1", "road_2", "road_4")
SCALED_ROTATION_TOLERANCE = 1e-6  # relative; how far a block may be from c·R(θ) and still count as one


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
    """Length of θ (and of α) for one layer of output `width`: d/2, d or 2d.

    Both together are the d, 2d or 4d trained numbers a layer of the paper's table 1.
    """
    return {"road_1": width // 2, "road_2": width, "road_4": 2 * width}[variant]


def layer_width(variant: str, count: int, group_size: int, name: str = "layer") -> int:
    """Output width of the layer that has `count` angles, the inverse of `num_parameters`.

    Raises `AlgebraError` naming `name` if no layer of this variant and group size has so many.
    """
    if variant not in VARIANTS:
        raise AlgebraError(f"unknown variant {variant!r}; use one of {', '.join(VARIANTS)}")
    width = {"road_1": 2 * count, "road_2": count, "road_4": count // 2}[variant]
    if not width or num_parameters(variant, width) != count:
        raise AlgebraError(f"{name}: {count} entries fit no {variant} layer")
    check_group_size(width, group_size, name)
    return width


def swap(x: Tensor, group_size: int) -> Tensor:
    """Exchange the two members of every pair along the last dimension. x [..., d], result [..., d]."""
    grouped = x.unflatten(-1, (-1, 2, group_size // 2))  # [..., groups, 2, g/2]
    return grouped.flip(-2).flatten(-3)


def split_pairs(x: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """x [d] → (lo, hi), the first and the second member of every pair, each [groups, g/2]. `join_pairs` undoes it."""
    lo, hi = x.view(-1, 2, group_size // 2).unbind(1)
    return lo, hi


def join_pairs(lo: Tensor, hi: Tensor) -> Tensor:
    """(lo, hi), each [groups, g/2] → [d]."""
    return torch.stack([lo, hi], dim=1).reshape(-1)


def rotate(h: Tensor, a: Tensor, b: Tensor, group_size: int) -> Tensor:
    """`z = a ⊙ h + b ⊙ swap(h)`. h [..., d], a and b [d] or broadcastable.

    Computed in float32, or in float64 if h is; the result has h's dtype.
    """
    wide = h if h.dtype == torch.float64 else h.float()
    return (a * wide + b * swap(wide, group_size)).to(h.dtype)


def lower(variant: str, theta: Tensor, alpha: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """θ (radians) and α of any variant → (a, b), each [d]. Differentiable, in float32 or better.

    The parameters lie as PEFT lays them: road_1 has one entry a pair, road_2 one an output. road_4 has two g entries a
    group of g outputs: first those with cosines (α11, α22), then those with sines (α12, α21).
    Raises `AlgebraError` for an unknown variant.
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
    """(a, b), each [d] → the smallest variant that holds them, its θ (radians) and its α.

    That is road_1 if every block is a scaled rotation, else road_2. `lower` gives a and b back within 1e-6.
    """
    a_lo, a_hi = split_pairs(a, group_size)
    b_lo, b_hi = split_pairs(b, group_size)
    if is_scaled_rotation(a, b, group_size).all():
        return "road_1", torch.atan2(b_hi, a_lo).reshape(-1), torch.hypot(a_lo, b_hi).reshape(-1)
    theta = torch.stack([torch.atan2(-b_lo, a_lo), torch.atan2(b_hi, a_hi)], dim=-2)
    alpha = torch.stack([torch.hypot(a_lo, b_lo), torch.hypot(a_hi, b_hi)], dim=-2)
    return "road_2", theta.reshape(-1), alpha.reshape(-1)


def is_scaled_rotation(a: Tensor, b: Tensor, group_size: int) -> Tensor:
    """For every pair, [pairs] bool: is its block c·R(θ), within 1e-6 of its size? Such blocks commute."""
    a_lo, a_hi = split_pairs(a, group_size)
    b_lo, b_hi = split_pairs(b, group_size)
    size = torch.maximum(torch.hypot(a_lo, b_lo), torch.hypot(a_hi, b_hi))
    off = torch.maximum((a_lo - a_hi).abs(), (b_lo + b_hi).abs())
    return (off <= SCALED_ROTATION_TOLERANCE * size).reshape(-1)


def turn(a: Tensor, b: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """For every pair, each [pairs]: the angle of its block in radians, in (−π, π], and ln of its scale √|det|.

    The angle is that of the nearest rotation, as the polar decomposition gives it. A block c·R(θ) has θ and ln c.
    """
    a_lo, a_hi = split_pairs(a, group_size)
    b_lo, b_hi = split_pairs(b, group_size)
    angle = torch.atan2(b_hi - b_lo, a_lo + a_hi)
    scale = (a_lo * a_hi - b_lo * b_hi).abs().clamp_min(1e-30).log() / 2
    return angle.reshape(-1), scale.reshape(-1)
