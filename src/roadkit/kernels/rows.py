"""`rotate_rows`: every row of a batch rotated by its own adapter, z[i] = R[row[i]] h[i].

    z = rotate_rows(h, rows, a, b, group_size=64)     # h [8, 576], rows [8], a and b [slots, 576]

Four back ends compute the same: the loop (`rotate_rows_loop`, the definition), plain torch, the fused C kernel for
the CPU (`c/rotations.c`) and Triton for CUDA (`triton_rows.py`). One is chosen for each type of device; the choice is
made once and logged.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from ..errors import AdapterError
from ..rotation import check_group_size, rotate, swap
from . import native

log = logging.getLogger("roadkit.kernels")

_SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def rotate_rows(
    h: Tensor, rows: Tensor, a: Tensor, b: Tensor, group_size: int | tuple[int, ...], out: Tensor | None = None
) -> Tensor:
    """`z[i] = a[row[i]] ⊙ h[i] + Σ_g b_g[row[i]] ⊙ swap_g(h[i])`

    h           [..., d], any float dtype; the arithmetic is float32 (float64 for float64), z has h's dtype
    rows        [...] integers, the slot of each row; the shape may stop early: [batch] serves h [batch, tokens, d]
    a           [slots, d] float32
    b           [slots, d] float32, or [sizes, slots, d] with a tuple of group sizes
    group_size  the pairing of b, or one size for each plane of b
    out         where to write, contiguous; may be h itself

    Raises `AdapterError` for shapes that do not fit, and on the CPU for rows that name no slot. On CUDA, where looking
    would stall the stream, such rows give NaN. If h needs a gradient, plain torch computes z, differentiable in h alone;
    `gradient.rotate_trainable` is differentiable in the angles too.

    Source: the element-wise batching of RoAd (arXiv 2409.00119, §3.2, eq. 4).
    """
    d, sizes = _check(h.shape, rows.shape, a.shape, b.shape, group_size, rows.dtype)
    if out is not None:
        _check_out(out, h)
    plain = (h.requires_grad and torch.is_grad_enabled()) or torch.compiler.is_compiling()
    if not plain and h.is_cpu and h.dtype in _SUFFIX and backend_for("cpu") == "native":
        return _rotate_native(h, rows, a, b, d, sizes, out)
    rows, planes = rows.long(), b if b.dim() == 3 else b.unsqueeze(0)
    if not plain and h.is_cuda and h.dtype in _SUFFIX and backend_for("cuda") == "triton":
        from . import triton_rows

        flat = out.view(-1, d) if out is not None else None
        z = triton_rows.rotate_rows_triton(h.reshape(-1, d), _flat_rows(rows, h), a, planes, sizes, flat)
        return z.view(h.shape)
    if h.is_cpu and not torch.compiler.is_compiling():
        _check_slots(rows, a.shape[0])
    z = rotate_rows_torch(h, rows, a, planes, sizes)
    return z if out is None else out.copy_(z)


def rotate_rows_torch(h: Tensor, rows: Tensor, a: Tensor, b: Tensor, group_sizes: tuple[int, ...]) -> Tensor:
    """`rotate_rows` in plain torch: one gather a plane, multiply, add. b [sizes, slots, d]. Compilers fuse it."""
    wide = h if h.dtype == torch.float64 else h.float()
    rows = rows[(...,) + (None,) * (h.dim() - 1 - rows.dim())]
    z = a[rows] * wide
    for plane, size in zip(b, group_sizes, strict=True):
        z = z + plane[rows] * swap(wide, size)
    return z.to(h.dtype)


def rotate_rows_loop(h: Tensor, rows: Tensor, a: Tensor, b: Tensor, group_sizes: tuple[int, ...]) -> Tensor:
    """The definition, one row at a time, that every back end is tested against. Arguments as `rotate_rows_torch`'s."""
    flat = h.reshape(-1, h.shape[-1])
    flat = flat if h.dtype == torch.float64 else flat.float()
    z = torch.empty(flat.shape, dtype=h.dtype, device=h.device)
    for i, slot in enumerate(_flat_rows(rows, h).tolist()):
        row = rotate(flat[i], a[slot], b[0][slot], group_sizes[0])
        for plane, size in zip(b[1:], group_sizes[1:], strict=True):
            row = row + plane[slot] * swap(flat[i], size)
        z[i] = row.to(h.dtype)
    return z.view(h.shape)


@functools.cache
def backend_for(device_type: str) -> str:
    """What serves tensors on this type of device: 'native', 'triton' or 'torch'. Chosen once, logged once."""
    chosen = "torch"
    if device_type == "cpu" and native.load() is not None:
        chosen = "native"
    elif device_type == "cuda" and _triton_works():
        chosen = "triton"
    log.info("rotate_rows on %s: %s", device_type, chosen)
    return chosen


def _triton_works() -> bool:
    """Try one launch: without a C compiler and Python's headers Triton can be imported, but fails here."""
    try:
        from . import triton_rows

        one = torch.ones(1, 2, device="cuda")
        triton_rows.rotate_rows_triton(one, torch.zeros(1, dtype=torch.int64, device="cuda"), one, one[None], (2,))
    except Exception as error:
        log.warning("rotate_rows does without Triton, which fails here: %s", error)
        return False
    return True


def _rotate_native(h: Tensor, rows: Tensor, a: Tensor, b: Tensor, d: int, sizes, out: Tensor | None) -> Tensor:
    source = h if h.is_contiguous() else h.contiguous()
    z = torch.empty_like(source) if out is None else out
    if rows.dim() != h.dim() - 1 or rows.dtype is not torch.int64 or not rows.is_contiguous():
        rows = _flat_rows(rows.long(), h)
    size = h.numel()
    pointers = source.data_ptr(), z.data_ptr(), rows.data_ptr()
    rotations = native.rotations_of(a, b, sizes)
    bad = _native_call(h.dtype)(*pointers, size // d, d, d, rotations, torch.get_num_threads())
    if bad:
        raise _no_such_slot(int(rows.reshape(-1)[bad - 1]), a.shape[0])
    return z


@functools.cache
def _native_call(dtype: torch.dtype):
    return getattr(native.load(), "rk_rotate_" + _SUFFIX[dtype])


def _flat_rows(rows: Tensor, h: Tensor) -> Tensor:
    """The rows, spread over the leading dimensions of h that they leave out: [n] contiguous."""
    return rows[(...,) + (None,) * (h.dim() - 1 - rows.dim())].expand(h.shape[:-1]).reshape(-1).contiguous()


@functools.lru_cache(maxsize=4096)
def _check(h: torch.Size, rows: torch.Size, a: torch.Size, b: torch.Size, group_size, dtype) -> tuple[int, tuple]:
    """Raise `AdapterError` for shapes that do not fit; each combination is looked at once. → d, group sizes."""
    d, sizes = h[-1], group_size if isinstance(group_size, tuple) else (group_size,)
    if dtype not in _INTEGERS:
        raise AdapterError(f"rows must be integers, got {dtype}")
    if rows != h[: len(rows)] or len(rows) >= len(h):
        raise AdapterError(f"rows {list(rows)} must be the leading shape of h {list(h)}")
    if len(a) != 2 or a[1] != d or b not in (((len(sizes), *a)), a if len(sizes) == 1 else None):
        raise AdapterError(
            f"h is {d} wide with {len(sizes)} group sizes: a must be [slots, {d}] and b [{len(sizes)}, slots, {d}], "
            f"got {list(a)} and {list(b)}"
        )
    for size in sizes:
        check_group_size(d, size, "rotate_rows")
    return d, sizes


def _check_out(out: Tensor, h: Tensor) -> None:
    if out.shape != h.shape or out.dtype != h.dtype or not out.is_contiguous():
        strided = "" if out.is_contiguous() else ", not contiguous"
        raise AdapterError(
            f"out must be contiguous, {h.dtype} and {list(h.shape)}, got {out.dtype}, {list(out.shape)}{strided}"
        )


def _check_slots(rows: Tensor, num_slots: int) -> None:
    bad = ((rows < 0) | (rows >= num_slots)).nonzero()
    if len(bad):
        raise _no_such_slot(int(rows[tuple(bad[0])]), num_slots)


def _no_such_slot(slot: int, num_slots: int) -> AdapterError:
    return AdapterError(f"row names slot {slot}, but there are {num_slots} slots (0 to {num_slots - 1})")
