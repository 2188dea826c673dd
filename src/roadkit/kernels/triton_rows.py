"""`rotate_rows` on CUDA, written in Triton: one program rotates one span of one row.

    z = rotate_rows_triton(h, rows, a, b, (64,))     # h [8, 576] on the GPU, rows [8], a [slots, 576], b [1, slots, 576]

Import it only if there is a GPU to serve, or to check the kernel without one: `TRITON_INTERPRET=1`, set before this
module is imported, runs it on the CPU, and `compile_ahead(90, torch.bfloat16, (64,))` builds the H100's machine code.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

BLOCK = 1024  # outputs that a program handles: 4 warps of 8 outputs a thread, one 16-byte load in the 16-bit types
MAX_BLOCK = 8192  # outputs that it may handle; in place, a larger unit of pairing is read from a copy
_TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


@triton.jit(do_not_specialize=["num_slots"])
def _rotate_rows(h, rows, a, b, z, d, num_slots, h_row, h_col, rows_step, a_row, b_plane, b_row, z_row, z_col,
                 SIZES: tl.constexpr, SPAN: tl.constexpr, TILE: tl.constexpr, IN_PLACE: tl.constexpr):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    slot = tl.load(rows + i * rows_step).to(tl.int64)
    lane = tl.arange(0, TILE)
    o = tl.program_id(1) * SPAN + lane  # the outputs of this program
    inside = (lane < SPAN) & (o < d)
    # a slot that does not exist has width 0 and yields NaN: to raise, the host would have to wait for the device
    known = inside & (o < tl.where((slot >= 0) & (slot < num_slots), d, 0))
    h += i * h_row
    b += slot * b_row
    x = tl.load(h + o.to(tl.int64) * h_col, inside, other=0.0).to(tl.float32)
    y = tl.load(a + slot * a_row + o, known, other=float("nan")) * x
    for k in tl.static_range(len(SIZES)):  # pyright: ignore
        half = SIZES[k] // 2
        partner = tl.where(o % SIZES[k] < half, o + half, o - half)
        x = tl.load(h + partner.to(tl.int64) * h_col, inside, other=0.0).to(tl.float32)
        y += tl.load(b + o, known, other=0.0) * x
        b += b_plane
    if IN_PLACE:
        tl.debug_barrier()  # no thread stores before every thread has its partners
    tl.store(z + i * z_row + o.to(tl.int64) * z_col, y.to(z.dtype.element_ty), inside)


def rotate_rows_triton(
    h: Tensor, rows: Tensor, a: Tensor, b: Tensor, group_sizes: tuple[int, ...], out: Tensor | None = None
) -> Tensor:
    """`z[i] = a[row[i]] ⊙ h[i] + Σ_k b[k, row[i]] ⊙ swap_{g_k}(h[i])`

    h            [n, d] float32, float16 or bfloat16, any strides; computed in float32, returned in h's dtype
    rows         [n] int32 or int64, the slot of each row; a row that names no slot comes back as NaN
    a            [slots, d] float32, contiguous along d
    b            [sizes, slots, d] float32, contiguous along d
    group_sizes  the pairing of each plane of b; every size divides d
    out          [n, d], h's dtype, any strides; may be h itself

    Nothing is checked here: `kernels.rotate_rows` does that. Whatever n is, the same roundings happen in the same order:
    a row's result does not depend on the rest of the batch.
    """
    assert h.dtype in _TYPES, h.dtype
    z = torch.empty_like(h) if out is None else out
    n, d = h.shape
    if n == 0:
        return z
    in_place = z.untyped_storage().data_ptr() == h.untyped_storage().data_ptr()
    same = z.data_ptr() == h.data_ptr() and z.stride() == h.stride()
    if in_place and not (same and _span(group_sizes) <= MAX_BLOCK):  # a program would write what another still reads
        h, in_place = h.clone(), False
    constants, options = _plan(d, group_sizes, in_place)
    with torch.cuda.device_of(h):
        _rotate_rows[n, triton.cdiv(d, constants["SPAN"])](
            h, rows, a, b, z, d, a.shape[0], h.stride(0), h.stride(1), rows.stride(0), a.stride(0), b.stride(0),
            b.stride(1), z.stride(0), z.stride(1), **constants, **options)  # fmt: skip
    return z


def compile_ahead(
    target_capability: int, dtype: torch.dtype, group_sizes: tuple[int, ...], *, in_place: bool = False
) -> CompiledKernel:
    """Compile for a CUDA target (80 for sm_80, 90 for sm_90) without a GPU; `.asm["ptx"]` and `.asm["cubin"]` hold it.

    This is the kernel that a launch on contiguous, 16-byte aligned tensors builds. It does not work under
    `TRITON_INTERPRET=1`.
    """
    width = 2 * math.lcm(BLOCK, *group_sizes)
    constants, options = _plan(width, group_sizes, in_place)
    pointers = {"h": _TYPES[dtype], "rows": "*i64", "a": "*fp32", "b": "*fp32", "z": _TYPES[dtype]}
    integers = dict.fromkeys(("d", "num_slots", "h_row", "a_row", "b_plane", "b_row", "z_row"), "i32")
    constants |= {"h_col": 1, "z_col": 1, "rows_step": 1}
    types = pointers | integers | dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in _rotate_rows.arg_names}
    aligned = [i for i, name in enumerate(signature) if types[name] != "constexpr" and name != "num_slots"]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(_rotate_rows, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", target_capability, 32), options=options)


def _plan(d: int, group_sizes: tuple[int, ...], in_place: bool) -> tuple[dict, dict]:
    """The kernel's constants and the compiler's options; they do not depend on the number of rows."""
    span = min(d, _span(group_sizes) if in_place else BLOCK)
    tile = triton.next_power_of_2(span)
    constants = {"SIZES": tuple(group_sizes), "SPAN": span, "TILE": tile, "IN_PLACE": in_place}
    # without fused multiply-adds z is rounded as plain torch rounds it; the kernel waits for memory either way
    return constants, {"num_warps": min(max(tile // 256, 1), 16), "enable_fp_fusion": False}


def _span(group_sizes: tuple[int, ...]) -> int:
    """About BLOCK outputs that hold whole groups of every size: all partners of what a program overwrites."""
    unit = math.lcm(*group_sizes)
    return max(unit, BLOCK // unit * unit)
