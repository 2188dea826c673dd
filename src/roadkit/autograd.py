"""`rotate_trainable`: the rotation as a trainable operation that keeps almost nothing for its backward pass.

    z = rotate_trainable(h, theta, alpha, variant="road_1", group_size=64)   # h [4, 128, 576], theta and alpha [288]
    z.sum().backward()                                                       # fills theta.grad and alpha.grad

The gradient needs the layer's input h or its output z: h = R⁻¹z wherever R is well conditioned, as every road_1 block
is. Then z is kept, because later operations mostly keep it anyway (attention its values, an MLP its gate and up
projection), and sharing it costs nothing. One pass over g and z gives the rest: `training.c`, or plain torch below.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import native
from .kernels import rotate_rows
from .rotation import lower, rotate, swap

MIN_SCALE = 1e-3  # where a block shrinks h below this, the input is kept
MAX_CONDITION = 1e3  # and where a block's singular values differ by more than this
MAX_NOISE = 1 / 64  # or by so much that the inverse turns the rounding of a 16-bit z into a larger relative error
_SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
_NUMBER = {"road_1": 1, "road_2": 2, "road_4": 4}
_PARALLEL_FROM = 32768  # elements; below, waking a second thread costs more than it saves
_BLOCK_ROWS, _MAX_BLOCKS = 64, 64  # rows summed in one go; fixed, so that sums do not depend on the thread count


def rotate_trainable(h: Tensor, theta: Tensor, alpha: Tensor, *, variant: str, group_size: int) -> Tensor:
    """`z = a ⊙ h + b ⊙ swap(h)` with (a, b) = `lower(variant, θ, α)`, differentiable once in h, θ and α.

    h             [..., d], any float dtype; z has its dtype, the arithmetic is float32 (float64 for float64)
    theta, alpha  [num_parameters(variant, d)] in PEFT's layout, any float dtype; their gradients have it too

    Under `torch.compile` it is plain torch operations, which the compiler fuses and differentiates itself.
    """
    if theta.dtype not in (torch.float32, torch.float64):
        theta, alpha = theta.float(), alpha.float()
    if torch.compiler.is_compiling():
        return rotate(h, *lower(variant, theta, alpha, group_size), group_size)
    return _Rotate.apply(h, theta, alpha, variant, group_size)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: Tensor, theta: Tensor, alpha: Tensor, variant: str, group_size: int) -> Tensor:
        ctx.way = _native_way if _is_native(h, theta) else _torch_way
        ctx.variant, ctx.group_size = variant, group_size
        z, ctx.from_output = ctx.way.forward(h, theta, alpha, variant, group_size)
        kept = None if not any(ctx.needs_input_grad[1:3]) else z if ctx.from_output else h
        ctx.save_for_backward(kept, theta, alpha)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):
        kept, theta, alpha = ctx.saved_tensors
        gradients = ctx.way.backward(
            g, kept, theta, alpha, variant=ctx.variant, group_size=ctx.group_size,
            from_output=ctx.from_output, needs_dh=ctx.needs_input_grad[0],
        )  # fmt: skip
        return *gradients, None, None


def _condition_limit(dtype: torch.dtype) -> float:
    return min(MAX_CONDITION, 2 * MAX_NOISE / torch.finfo(dtype).eps)


class _torch_way:
    """Plain torch: other devices, float64, machines without a compiler."""

    @staticmethod
    def forward(h, theta, alpha, variant, group_size):
        a, b = lower(variant, theta, alpha, group_size)
        determinant = (a * swap(a, group_size) - b * swap(b, group_size)).abs()  # σ₁σ₂ of the singular values
        squares = a * a + b * b
        frobenius = squares + swap(squares, group_size)  # σ₁² + σ₂²
        limit = _condition_limit(h.dtype)
        # σ₁/σ₂ ≤ limit, and σ₂ ≥ MIN_SCALE (within √2; exact for a scaled rotation)
        invertible = frobenius <= (limit + 1 / limit) * determinant
        invertible &= 2 * determinant**2 >= MIN_SCALE**2 * frobenius
        return _rotate(h, a, b, group_size), bool(invertible.all())

    @staticmethod
    def backward(g, kept, theta, alpha, *, variant, group_size, from_output, needs_dh):
        with torch.enable_grad():
            theta, alpha = theta.detach().requires_grad_(), alpha.detach().requires_grad_()
            lowered = lower(variant, theta, alpha, group_size)
        a, b = (vector.detach() for vector in lowered)
        swapped_a, swapped_b = swap(a, group_size), swap(b, group_size)
        dh = _rotate(g, a, swapped_b, group_size) if needs_dh else None  # Rᵀg
        if kept is None:
            return dh, None, None
        wide_g, wide_x = (x.reshape(-1, x.shape[-1]).to(a.dtype) for x in (g, kept))
        s, t = (wide_g * wide_x).sum(0), (wide_g * swap(wide_x, group_size)).sum(0)
        if from_output:  # summed with z for h; h = (swap(a) ⊙ z - b ⊙ swap(z)) / det
            determinant = a * swapped_a - b * swapped_b
            s, t = (swapped_a * s - b * t) / determinant, (a * t - swapped_b * s) / determinant
        return dh, *torch.autograd.grad(lowered, (theta, alpha), (s, t))


def _rotate(h: Tensor, a: Tensor, b: Tensor, group_size: int) -> Tensor:
    if h.dtype not in _SUFFIX or a.dtype != torch.float32:
        return rotate(h, a, b, group_size)
    slot = torch.zeros((), dtype=torch.int64, device=h.device)
    return rotate_rows(h, slot, a.unsqueeze(0), b.unsqueeze(0), group_size)


def _is_native(h: Tensor, theta: Tensor) -> bool:
    fits = h.device.type == "cpu" and h.dtype in _SUFFIX and theta.dtype == torch.float32
    return fits and native.load_training() is not None


class _native_way:
    """The same through `training.c`: one call and one pass over memory each way."""

    @staticmethod
    def forward(h, theta, alpha, variant, group_size):
        h = h.contiguous()
        z, lowered = torch.empty_like(h), torch.empty(3, h.shape[-1])
        invertible = _native_lower(theta, alpha, lowered, variant, group_size, h.dtype)
        _native_pass(h, None, z, lowered[0], lowered[1], None, group_size)
        return z, invertible

    @staticmethod
    def backward(g, kept, theta, alpha, *, variant, group_size, from_output, needs_dh):
        g = g.contiguous()
        d = g.shape[-1]
        dh, lowered = torch.empty_like(g) if needs_dh else None, torch.empty(3, d)
        _native_lower(theta, alpha, lowered, variant, group_size, g.dtype)
        if kept is None:
            _native_pass(g, None, dh, lowered[0], lowered[2], None, group_size)
            return dh, None, None
        blocks = max(1, min(g.numel() // d // _BLOCK_ROWS, _MAX_BLOCKS))
        sums = torch.empty(blocks, 2, d)
        _native_pass(g, kept.contiguous(), dh, lowered[0], lowered[2], sums, group_size)
        d_theta, d_alpha = torch.zeros_like(theta), torch.zeros_like(alpha)
        native.load_training().rk_chain(
            theta.data_ptr(), alpha.data_ptr(), lowered.data_ptr(), sums.data_ptr(), d_theta.data_ptr(),
            d_alpha.data_ptr(), d, group_size, _NUMBER[variant], from_output,
        )  # fmt: skip
        return dh, d_theta, d_alpha


def _native_lower(theta, alpha, lowered, variant, group_size, dtype) -> bool:
    """Fills `lowered` [3, d] with a, b and swap(b). May h be recomputed from z as `dtype` stores it?"""
    call = native.load_training().rk_lower
    return bool(
        call(
            theta.data_ptr(), alpha.data_ptr(), lowered.data_ptr(), lowered.shape[1], group_size, _NUMBER[variant],
            _condition_limit(dtype), MIN_SCALE,
        )
    )  # fmt: skip


def _native_pass(g, x, out, a, b, sums, group_size) -> None:
    """out = a ⊙ g + b ⊙ swap(g); with `sums` [blocks, 2, d] also Σ g ⊙ x and Σ g ⊙ swap(x), in its first block."""
    d = g.shape[-1]
    n = g.numel() // d
    call = getattr(native.load_training(), "rk_pass_" + _SUFFIX[g.dtype])
    call(
        g.data_ptr(), None if x is None else x.data_ptr(), None if out is None else out.data_ptr(), a.data_ptr(),
        b.data_ptr(), None if sums is None else sums.data_ptr(), n, d, group_size, n if sums is None else len(sums),
        torch.get_num_threads() if g.numel() >= _PARALLEL_FROM else 1,
    )  # fmt: skip
