"""`rotate_trainable`: the rotation as a trainable operation that keeps almost nothing for its backward pass.

    z = rotate_trainable(h, theta, alpha, variant="road_1", group_size=64)   # h [4, 128, 576], theta and alpha [288]
    z.sum().backward()                                                       # fills theta.grad and alpha.grad

The gradient needs the layer's input h or its output z. If R is well conditioned, as every road_1 block is, h = R⁻¹z and
z is kept: later operations mostly keep it anyway (attention its values, an MLP its gate and up projection), and sharing
it costs nothing. One pass over the incoming gradient g and z gives the rest: in C (`c/training.c`), or in plain torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import AdapterError, AlgebraError
from ..rotation import VARIANTS, check_group_size, lower, num_parameters, rotate, swap
from . import native
from .rows import rotate_rows

# The input is kept instead of the output if one block
MIN_SCALE = 1e-3  # shrinks h by more than this,
MAX_CONDITION = 100  # has singular values that differ by a larger factor than this,
MAX_NOISE = 1 / 64  # or by so much that its inverse turns the rounding of a 16-bit z into a larger relative error.
_SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
_NUMBER = {"road_1": 1, "road_2": 2, "road_4": 4}
_PARALLEL_FROM = 32768  # elements; below, waking a second thread costs more than it saves
_BLOCK_ROWS, _MAX_BLOCKS = 32, 64  # rows summed in one go; fixed, so that sums do not depend on the thread count


def rotate_trainable(
    h: Tensor, theta: Tensor, alpha: Tensor, *, variant: str, group_size: int, reuse: bool = False
) -> Tensor:
    """`z = a ⊙ h + b ⊙ swap(h)` with `(a, b) = lower(variant, θ, α, group_size)`, differentiable once in h, θ and α.

    h             [..., d], any float dtype; z has its dtype, the arithmetic is float32 (float64 for float64)
    theta, alpha  [num_parameters(variant, d)] in PEFT's layout, any float dtype, θ in radians; gradients have their dtype
    reuse         h is nobody else's: z may take its memory, which spares a third of the traffic

    Raises `AdapterError` for θ or α of another shape, `AlgebraError` for a variant or group size that does not exist.
    Under `torch.compile` these are plain torch operations, which the compiler fuses and differentiates itself.

    Source: RoAd (arXiv 2409.00119, eq. 2-4); the parameters' layout is that of PEFT's `RoadLayer`.
    """
    theta, alpha = (x if x.dtype in (torch.float32, torch.float64) else x.float() for x in (theta, alpha))
    if torch.compiler.is_compiling():
        return rotate(h, *lower(variant, theta, alpha, group_size), group_size)
    _check(h, theta, alpha, variant, group_size)
    trains = torch.is_grad_enabled() and (theta.requires_grad or alpha.requires_grad)
    reuse = reuse and h.is_contiguous() and not h._is_view() and not (h.is_leaf and h.requires_grad)
    return _Rotate.apply(h, theta, alpha, variant, group_size, trains, reuse)


def rotate_blocks(h: Tensor, blocks: Sequence[tuple[int, Tensor, Tensor]], *, variant: str, group_size: int) -> Tensor:
    """`z[i] = R_k h[i]` for the rows i of adapter k: `rotate_trainable` for many adapters in one node of the graph.

    h         [n, ..., d], any float dtype
    blocks    (number of rows, θ, α) for each adapter; the adapters' rows of h follow each other

    Raises `AdapterError` if the numbers of rows do not add up to n, and what `rotate_trainable` does.
    """
    for _, theta, alpha in blocks:
        _check(h, theta, alpha, variant, group_size)
    rows = [count for count, _, _ in blocks]
    if sum(rows) != len(h):
        raise AdapterError(f"the blocks have {sum(rows)} rows together, h has {len(h)}")
    return _RotateBlocks.apply(h, variant, group_size, rows, *(vector for block in blocks for vector in block[1:]))


def _check(h: Tensor, theta: Tensor, alpha: Tensor, variant: str, group_size: int) -> None:
    expected = _parameter_shape(variant, h.shape[-1], group_size)
    if theta.shape != expected or alpha.shape != expected:
        raise AdapterError(
            f"{variant} of a layer {h.shape[-1]} wide has theta and alpha of shape {list(expected)}, "
            f"got {list(theta.shape)} and {list(alpha.shape)}"
        )


@functools.cache
def _parameter_shape(variant: str, d: int, group_size: int) -> tuple[int]:
    check_group_size(d, group_size, "rotate_trainable")
    if variant not in VARIANTS:
        raise AlgebraError(f"unknown variant {variant!r}; use one of {', '.join(VARIANTS)}")
    return (num_parameters(variant, d),)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: Tensor, theta: Tensor, alpha: Tensor, variant: str, group_size: int, trains: bool, reuse: bool):
        theta, alpha = theta.contiguous(), alpha.contiguous()
        ctx.native = _is_native(h, theta, alpha)
        ctx.variant, ctx.group_size = variant, group_size
        forward = _forward_native if ctx.native else _forward_torch
        out = h if reuse else None
        z, ctx.from_output = forward(h, theta, alpha, variant=variant, group_size=group_size, trains=trains, out=out)
        if z is h:
            ctx.mark_dirty(h)
        kept = z if ctx.from_output else h
        ctx.save_for_backward(kept if trains else None, theta, alpha)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):  # type: ignore[override]
        kept, theta, alpha = ctx.saved_tensors
        backward = _backward_native if ctx.native else _backward_torch
        g = g.contiguous()
        dh = torch.empty_like(g) if ctx.needs_input_grad[0] else None
        d_theta, d_alpha = backward(
            g, kept, theta, alpha, variant=ctx.variant, group_size=ctx.group_size, from_output=ctx.from_output, dh=dh
        )
        return dh, d_theta, d_alpha, None, None, None, None


class _RotateBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: Tensor, variant: str, group_size: int, rows: list[int], *vectors: Tensor):
        h = h.contiguous()
        ctx.native = _is_native(h, *vectors[:2])
        ctx.rows, ctx.options = rows, {"variant": variant, "group_size": group_size}
        forward = _forward_native if ctx.native else _forward_torch
        z = torch.empty_like(h)
        ctx.from_output = True
        for own, out, theta, alpha in zip(h.split(rows), z.split(rows), vectors[::2], vectors[1::2], strict=True):
            ctx.from_output &= forward(own, theta, alpha, **ctx.options, trains=True, out=out)[1]
        ctx.save_for_backward(z if ctx.from_output else h, *vectors)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):  # type: ignore[override]
        kept, *vectors = ctx.saved_tensors
        g = g.contiguous()
        backward = _backward_native if ctx.native else _backward_torch
        dh = torch.empty_like(g) if ctx.needs_input_grad[0] else None
        outs = dh.split(ctx.rows) if dh is not None else [None] * len(ctx.rows)
        gradients = []
        for own, x, out, theta, alpha in zip(
            g.split(ctx.rows), kept.split(ctx.rows), outs, vectors[::2], vectors[1::2], strict=True
        ):
            gradients += backward(own, x, theta, alpha, **ctx.options, from_output=ctx.from_output, dh=out)
        return dh, None, None, None, *gradients


@functools.cache
def _condition_limit(dtype: torch.dtype) -> float:
    return min(MAX_CONDITION, 2 * MAX_NOISE / torch.finfo(dtype).eps)


# ---- plain torch: other devices, float64, machines without a compiler --------------------------------------------


def _forward_torch(h, theta, alpha, *, variant, group_size, trains, out):
    """→ z, in `out` if it is given and is not h; and whether z is enough for the gradient."""
    a, b = lower(variant, theta, alpha, group_size)
    z = _rotate(h, a, b, group_size)
    if out is not None and out is not h:
        z = out.copy_(z)
    if not trains:
        return z, False
    determinant = (a * swap(a, group_size) - b * swap(b, group_size)).abs()  # σ₁σ₂ of the singular values
    squares = a * a + b * b
    frobenius = squares + swap(squares, group_size)  # σ₁² + σ₂²
    limit = _condition_limit(h.dtype)
    # σ₁/σ₂ ≤ limit, and σ₂ > MIN_SCALE (within √2; exact for a scaled rotation)
    invertible = frobenius <= (limit + 1 / limit) * determinant
    invertible &= 2 * determinant**2 > MIN_SCALE**2 * frobenius
    return z, bool(invertible.all())


def _backward_torch(g, kept, theta, alpha, *, variant, group_size, from_output, dh):
    """→ dθ and dα, both None if nothing was kept for them; writes dh unless it is None."""
    with torch.enable_grad():
        theta, alpha = theta.detach().requires_grad_(), alpha.detach().requires_grad_()
        lowered = lower(variant, theta, alpha, group_size)
    a, b = (vector.detach() for vector in lowered)
    swapped_a, swapped_b = swap(a, group_size), swap(b, group_size)
    if dh is not None:
        dh.copy_(_rotate(g, a, swapped_b, group_size))  # Rᵀg
    if kept is None:
        return None, None
    wide_g, wide_x = (x.reshape(-1, x.shape[-1]).to(a.dtype) for x in (g, kept))
    s, t = (wide_g * wide_x).sum(0), (wide_g * swap(wide_x, group_size)).sum(0)
    if from_output:  # summed with z for h; h = (swap(a) ⊙ z - b ⊙ swap(z)) / det
        determinant = a * swapped_a - b * swapped_b
        s, t = (swapped_a * s - b * t) / determinant, (a * t - swapped_b * s) / determinant
    return torch.autograd.grad(lowered, (theta, alpha), (s, t))


def _rotate(h: Tensor, a: Tensor, b: Tensor, group_size: int) -> Tensor:
    if h.dtype not in _SUFFIX or a.dtype != torch.float32:
        return rotate(h, a, b, group_size)
    slot = torch.zeros((), dtype=torch.int64, device=h.device)
    return rotate_rows(h, slot, a.unsqueeze(0), b.unsqueeze(0), group_size)


# ---- the same in C: one call and one pass over memory each way ---------------------------------------------------


@functools.cache
def _functions() -> dict[torch.dtype, tuple[Callable[..., int], Callable[..., int]]]:
    """Forward and backward of each dtype; {} if the C kernels cannot be built."""
    library = native.load_training()
    if library is None:
        return {}
    return {
        dtype: (getattr(library, f"rk_forward_{suffix}"), getattr(library, f"rk_backward_{suffix}"))
        for dtype, suffix in _SUFFIX.items()
    }


def _is_native(h: Tensor, theta: Tensor, alpha: Tensor) -> bool:
    plain = type(h) in (Tensor, nn.Parameter) and h.device.type == "cpu" and h.dtype in _functions()
    return plain and theta.dtype == alpha.dtype == torch.float32


def _forward_native(h, theta, alpha, *, variant, group_size, trains, out):
    """→ z, in `out` if it is given (it may be h); and whether z is enough for the gradient."""
    h = h if h.is_contiguous() else h.contiguous()
    z, (n, d) = torch.empty_like(h) if out is None else out, _rows(h)
    result = _functions()[h.dtype][0](
        h.data_ptr(), z.data_ptr(), theta.data_ptr(), alpha.data_ptr(), n, d, group_size, _NUMBER[variant], trains,
        _condition_limit(h.dtype), MIN_SCALE, _num_threads(h),
    )  # fmt: skip
    if result < 0:
        raise MemoryError(f"no memory to rotate {list(h.shape)}")
    if out is h and trains and not result:  # h was left alone, because the gradient needs it
        options = {"variant": variant, "group_size": group_size, "trains": trains}
        return _forward_native(h, theta, alpha, **options, out=None)
    return z, result > 0


def _backward_native(g, kept, theta, alpha, *, variant, group_size, from_output, dh):
    """As `_backward_torch`; g and dh are contiguous."""
    n, d = _rows(g)
    kept = None if kept is None else kept.contiguous()
    d_theta, d_alpha = (None, None) if kept is None else (torch.empty_like(theta), torch.empty_like(alpha))
    addresses = [None if x is None else x.data_ptr() for x in (g, kept, dh, theta, alpha, d_theta, d_alpha)]
    num_blocks = max(1, min(n // _BLOCK_ROWS, _MAX_BLOCKS))
    result = _functions()[g.dtype][1](
        *addresses, n, d, group_size, _NUMBER[variant], from_output, num_blocks, _num_threads(g)
    )
    if result < 0:
        raise MemoryError(f"no memory to differentiate the rotation of {list(g.shape)}")
    return d_theta, d_alpha


def _rows(x: Tensor) -> tuple[int, int]:
    d = x.shape[-1]
    return x.numel() // d, d


def _num_threads(x: Tensor) -> int:
    return torch.get_num_threads() if x.numel() >= _PARALLEL_FROM else 1
