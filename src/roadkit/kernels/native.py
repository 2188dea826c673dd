"""The C kernels as Python sees them: the structures that they read, and the bound functions.

    library = native.load()                # None if there is no compiler, or with ROADKIT_NATIVE=0
    library.rk_rms_norm(x.data_ptr(), weight.data_ptr(), y.data_ptr(), num_rows, d, eps, num_threads)
    training = native.load_training()

Structures and arguments are those of `c/inference.h` and `c/training.c`, which say what each of them means. A structure
holds addresses: whoever fills it keeps the tensors alive.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import os
import subprocess

import torch  # its OpenMP runtime has to be loaded before a library
from torch import Tensor

from ..errors import AdapterError
from .build import build, find_compiler, sources_of

log = logging.getLogger("roadkit.kernels")

pointer, size, integer, real = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_float


class Rotations(ctypes.Structure):
    """One layer's rotations as a bank holds them; `rotations_of` fills it."""

    _fields_ = [
        ("a", pointer),
        ("b", pointer),
        ("a_stride", size),
        ("b_stride", size),
        ("plane_stride", size),
        ("group_sizes", pointer),
        ("num_sizes", size),
        ("unit", size),
        ("num_slots", size),
    ]


class Linear(ctypes.Structure):
    """A packed linear layer."""

    _fields_ = [
        ("packed", pointer),
        ("scale", pointer),
        ("bias", pointer),
        ("num_outputs", size),
        ("num_inputs", size),
        ("stored", size),
        ("rotations", ctypes.POINTER(Rotations)),
    ]


class DecoderLayer(ctypes.Structure):
    """A Llama-like layer."""

    _fields_ = [
        *((name, ctypes.POINTER(Linear)) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        ("attention_norm", pointer),
        ("mlp_norm", pointer),
        ("attention_eps", real),
        ("mlp_eps", real),
        ("scale", real),
        ("keys", pointer),
        ("values", pointer),
        ("num_heads", size),
        ("num_kv_heads", size),
        ("head_dim", size),
        ("window", size),
    ]


class DecodeStep(ctypes.Structure):
    """One new token of each of several requests."""

    _fields_ = [
        ("count", size),
        ("rows", pointer),
        ("places", pointer),
        ("tables", pointer),
        ("last", pointer),
        ("table_stride", size),
        ("longest", size),
        ("num_threads", integer),
    ]


def load() -> ctypes.CDLL | None:
    """The kernels of inference, built if need be; None (the log says why, once) if that is impossible."""
    return _load("inference") if os.environ.get("ROADKIT_NATIVE", "1") != "0" else None


def loaded() -> ctypes.CDLL:
    """`load`, for code that runs only if there are kernels."""
    library = load()
    assert library is not None, "C kernels are called that could not be built"
    return library


def load_training() -> ctypes.CDLL | None:
    """The kernels of training likewise, which only `gradient` needs."""
    return _load("training") if os.environ.get("ROADKIT_NATIVE", "1") != "0" else None


@functools.cache
def _load(name: str) -> ctypes.CDLL | None:
    try:
        path = build(name, sources_of(name), find_compiler())
        if path is None:
            log.warning("no C compiler found: the fused CPU kernels are off, plain torch serves instead")
            return None
        library = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        log.warning("the C kernels of %s could not be built, plain torch serves instead: %s", name, detail)
        return None
    return {"inference": _bind_inference, "training": _bind_training}[name](library)


def _bind_inference(library: ctypes.CDLL) -> ctypes.CDLL:
    linear, layer, step = (ctypes.POINTER(kind) for kind in (Linear, DecoderLayer, DecodeStep))
    for dtype in ("f32", "bf16", "f16"):
        rotate = getattr(library, f"rk_rotate_{dtype}")
        rotate.argtypes = [pointer] * 3 + [size] * 3 + [ctypes.POINTER(Rotations), integer]
        rotate.restype = size
    library.rk_linear.argtypes = [linear, pointer, pointer, size, pointer, integer]
    library.rk_linear.restype = size
    library.rk_rms_norm.argtypes = [pointer] * 3 + [size] * 2 + [real, integer]
    library.rk_rms_norm.restype = None
    library.rk_rope.argtypes = [pointer] * 3 + [size] * 3 + [integer]
    library.rk_rope.restype = None
    library.rk_silu_multiply.argtypes = [pointer] * 3 + [size, integer]
    library.rk_silu_multiply.restype = None
    library.rk_store.argtypes = [pointer] * 5 + [size] * 5
    library.rk_store.restype = None
    library.rk_attend.argtypes = [step] + [pointer] * 4 + [size] * 5 + [real] * 2 + [size, pointer]
    library.rk_attend.restype = None
    library.rk_decode_work.argtypes, library.rk_decode_work.restype = [layer, step], size
    library.rk_decode_layer.argtypes, library.rk_decode_layer.restype = [layer, step] + [pointer] * 5, None
    return library


def _bind_training(library: ctypes.CDLL) -> ctypes.CDLL:
    for dtype in ("f32", "bf16", "f16"):
        forward, backward = getattr(library, f"rk_forward_{dtype}"), getattr(library, f"rk_backward_{dtype}")
        forward.argtypes = [pointer] * 4 + [size] * 3 + [integer] * 2 + [real] * 2 + [integer]
        backward.argtypes = [pointer] * 7 + [size] * 3 + [integer] * 2 + [size, integer]
        forward.restype = backward.restype = integer
    return library


def rotations_of(a: Tensor, b: Tensor, group_sizes: tuple[int, ...]) -> Rotations:
    """Point at a [slots, d] and b [slots, d] or [sizes, slots, d], float32 and contiguous along d.

    Raises `AdapterError` for other tensors.
    """
    layout = (a.dtype, b.dtype, a.stride(), b.stride(), a.shape[0], group_sizes)
    return _rotations(a.data_ptr(), b.data_ptr(), *layout)


@functools.lru_cache(maxsize=4096)  # small calls spend more time on filling nine fields than on rotating
def _rotations(a: int, b: int, a_dtype, b_dtype, a_stride, b_stride, num_slots: int, group_sizes) -> Rotations:
    if a_dtype != torch.float32 or b_dtype != torch.float32 or a_stride[-1] != 1 or b_stride[-1] != 1:
        raise AdapterError(f"a and b must be float32 and contiguous along d, got {a_dtype} and {b_dtype}")
    sizes, unit = _native_sizes(group_sizes)
    plane = b_stride[0] if len(b_stride) == 3 else 0
    return Rotations(a, b, a_stride[0], b_stride[-2], plane, sizes, len(group_sizes), unit, num_slots)


@functools.cache
def _native_sizes(group_sizes: tuple[int, ...]) -> tuple[int, int]:
    """The address of the sizes as C integers, and their least common multiple."""
    array = (ctypes.c_int64 * len(group_sizes))(*group_sizes)
    _kept.append(array)
    return ctypes.addressof(array), math.lcm(*group_sizes)


_kept: list = []  # the arrays that `_native_sizes` hands out addresses of
