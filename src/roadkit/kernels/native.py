"""Builds `inference.c` and `training.c` once with the C compiler; the cache keeps one file a source and processor.

    library = native.load()      # inference.c, bound; None where there is no compiler, or ROADKIT_NATIVE=0
    training = native.load_training()

Torch's own OpenMP runtime is shared: the library asks for `libgomp.so.1`, which torch has loaded already.

With ROADKIT_NATIVE=portable it is built for any server processor of the last ten years instead of this one, and where the
cache has it no compiler is needed: for images.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from ..files import cache_dir

log = logging.getLogger("roadkit.kernels")

FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC"]
X86 = ("x86_64", "AMD64")

pointer, size, integer, real = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_float


class Rotations(ctypes.Structure):
    """The bank's vectors of one layer, as `inference.c` reads them; see `Rotations` there."""

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
    """A packed linear layer; see `Linear` in inference.c."""

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
    """A Llama-like layer; see `DecoderLayer` in inference.c."""

    _fields_ = [
        *((name, Linear) for name in ("q", "k", "v", "o", "gate", "up", "down")),
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
    ]


class DecodeStep(ctypes.Structure):
    """One new token of each request; see `DecodeStep` in inference.c."""

    _fields_ = [
        ("count", size),
        ("rows", pointer),
        ("slots", pointer),
        ("tables", pointer),
        ("last", pointer),
        ("table_stride", size),
        ("longest", size),
        ("num_threads", integer),
    ]


def load() -> ctypes.CDLL | None:
    """The bound library, built if need be; None (once, with the reason in the log) where that is impossible."""
    return _load("inference.c") if os.environ.get("ROADKIT_NATIVE", "1") != "0" else None


def load_training() -> ctypes.CDLL | None:
    """The same for `training.c`, which only `gradient` needs."""
    return _load("training.c") if os.environ.get("ROADKIT_NATIVE", "1") != "0" else None


@functools.cache
def _load(source: str) -> ctypes.CDLL | None:
    import torch  # noqa: F401  (its OpenMP runtime has to be loaded first)

    compiler = next(
        (path for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (path := shutil.which(name))), None
    )
    try:
        path = _build(compiler, Path(__file__).with_name(source))
        if path is None:
            log.warning("no C compiler found: the fused CPU kernels are off, plain torch serves instead")
            return None
        library = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        log.warning("%s could not be built, plain torch serves instead: %s", source, detail)
        return None
    return {"inference.c": _bind_inference, "training.c": _bind_training}[source](library)


def _build(compiler: str | None, source: Path) -> Path | None:
    """The library's file, from the cache where it is there; None where it is not and no compiler is."""
    if _portable():
        flags = [*FLAGS, "-march=x86-64-v3" if platform.machine() in X86 else "-march=armv8.2-a"]
        made_by = ""  # whoever built it, wherever
    elif compiler is None:
        return None
    else:
        flags = [*FLAGS, "-march=native", *(["-mprefer-vector-width=512"] if platform.machine() in X86 else [])]
        made_by = f"{compiler} {_processor()}"
    key = hashlib.sha256()
    for part in (source.read_bytes(), " ".join(flags).encode(), made_by.encode()):
        key.update(part)
    target = cache_dir() / "native" / f"{source.stem}-{key.hexdigest()[:16]}.so"
    if target.exists():
        return target
    if compiler is None:
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        command = [compiler, *flags, str(source), "-o", str(built), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        os.replace(built, target)
    return target


def _portable() -> bool:
    return os.environ.get("ROADKIT_NATIVE") == "portable"


def _processor() -> str:
    """What `-march=native` depends on, so that a cache shared by different machines holds one file for each."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _bind_inference(library: ctypes.CDLL) -> ctypes.CDLL:
    rotations = ctypes.POINTER(Rotations)
    for dtype in ("f32", "bf16", "f16"):
        rotate = getattr(library, f"rk_rotate_{dtype}")
        rotate.argtypes = [pointer, pointer, pointer, size, size, size, rotations, integer]
        rotate.restype = size
    for dtype in ("f32", "bf16", "i8"):
        linear = getattr(library, f"rk_linear_{dtype}")
        linear.argtypes = [pointer] * 5 + [size] * 3 + [pointer, rotations, integer]
        linear.restype = size
    library.rk_rms_norm.argtypes = [pointer] * 3 + [size] * 2 + [real, integer]
    library.rk_rms_norm.restype = None
    library.rk_rope.argtypes = [pointer] * 3 + [size] * 3 + [integer]
    library.rk_rope.restype = None
    library.rk_silu_multiply.argtypes = [pointer] * 3 + [size, integer]
    library.rk_silu_multiply.restype = None
    library.rk_store.argtypes = [pointer] * 5 + [size] * 5
    library.rk_store.restype = None
    library.rk_attend.argtypes = (
        [pointer] * 5 + [size] + [pointer] * 2 + [size] * 6 + [real] * 2 + [pointer, size, integer]
    )
    library.rk_attend.restype = None
    layer, step = ctypes.POINTER(DecoderLayer), ctypes.POINTER(DecodeStep)
    library.rk_decode_work.argtypes, library.rk_decode_work.restype = [layer, step], size
    library.rk_decode_layer.argtypes, library.rk_decode_layer.restype = [layer, step] + [pointer] * 6, None
    return library


def _bind_training(library: ctypes.CDLL) -> ctypes.CDLL:
    for dtype in ("f32", "bf16", "f16"):
        forward, backward = getattr(library, f"rk_forward_{dtype}"), getattr(library, f"rk_backward_{dtype}")
        forward.argtypes = [pointer] * 4 + [size] * 3 + [integer] * 2 + [real] * 2 + [integer]
        backward.argtypes = [pointer] * 7 + [size] * 3 + [integer] * 2 + [size, integer]
        forward.restype = backward.restype = integer
    return library
