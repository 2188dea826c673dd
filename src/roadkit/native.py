"""Builds `kernels.c` and `training.c` once with the C compiler; the cache keeps one file a source and processor.

    library = native.load()      # kernels.c, bound; None where there is no compiler, or ROADKIT_NATIVE=0
    training = native.load_training()

Torch's own OpenMP runtime is shared: the library asks for `libgomp.so.1`, which torch has loaded already.
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

from .files import cache_dir

log = logging.getLogger("roadkit.kernels")

FLAGS = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC"]
WIDE_FLAGS = [*FLAGS, "-mprefer-vector-width=512"]  # x86 compilers only

pointer, size = ctypes.c_void_p, ctypes.c_ssize_t


class Rotations(ctypes.Structure):
    """The bank's vectors of one layer, as `kernels.c` reads them; see `Rotations` there."""

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


def load() -> ctypes.CDLL | None:
    """The bound library, built if need be; None (once, with the reason in the log) where that is impossible."""
    return _load("kernels.c") if os.environ.get("ROADKIT_NATIVE", "1") != "0" else None


def load_training() -> ctypes.CDLL | None:
    """The same for `training.c`, which only `autograd` needs."""
    return _load("training.c") if os.environ.get("ROADKIT_NATIVE", "1") != "0" else None


@functools.cache
def _load(source: str) -> ctypes.CDLL | None:
    import torch  # noqa: F401  (its OpenMP runtime has to be loaded first)

    compiler = next(
        (path for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (path := shutil.which(name))), None
    )
    if compiler is None:
        log.warning("no C compiler found: the fused CPU kernels are off, plain torch serves instead")
        return None
    try:
        library = ctypes.CDLL(str(_build(compiler, Path(__file__).with_name(source))))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        log.warning("%s could not be built, plain torch serves instead: %s", source, detail)
        return None
    return {"kernels.c": _bind_kernels, "training.c": _bind_training}[source](library)


def _build(compiler: str, source: Path) -> Path:
    flags = WIDE_FLAGS if platform.machine() in ("x86_64", "AMD64") else FLAGS
    key = hashlib.sha256()
    for part in (source.read_bytes(), " ".join([compiler, *flags]).encode(), _processor().encode()):
        key.update(part)
    target = cache_dir() / "native" / f"{source.stem}-{key.hexdigest()[:16]}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        command = [compiler, *flags, str(source), "-o", str(built), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        os.replace(built, target)
    return target


def _processor() -> str:
    """What `-march=native` depends on, so that a cache shared by different machines holds one file for each."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _bind_kernels(library: ctypes.CDLL) -> ctypes.CDLL:
    rotations = ctypes.POINTER(Rotations)
    for dtype in ("f32", "bf16", "f16"):
        rotate = getattr(library, f"rk_rotate_{dtype}")
        rotate.argtypes = [pointer, pointer, pointer, size, size, size, rotations, ctypes.c_int]
        rotate.restype = size
    for dtype in ("f32", "bf16", "i8"):
        linear = getattr(library, f"rk_linear_{dtype}")
        linear.argtypes = [pointer] * 5 + [size] * 3 + [pointer, rotations, ctypes.c_int]
        linear.restype = size
    library.rk_rms_norm.argtypes = [pointer] * 3 + [size] * 2 + [ctypes.c_float]
    library.rk_rms_norm.restype = None
    library.rk_rope.argtypes = [pointer] * 3 + [size] * 3
    library.rk_rope.restype = None
    library.rk_silu_multiply.argtypes = [pointer] * 3 + [size, ctypes.c_int]
    library.rk_silu_multiply.restype = None
    library.rk_store.argtypes = [pointer] * 5 + [size] * 5
    library.rk_store.restype = None
    library.rk_attend.argtypes = (
        [pointer] * 5 + [size] + [pointer] * 2 + [size] * 6 + [ctypes.c_float] * 2 + [pointer, size, ctypes.c_int]
    )
    library.rk_attend.restype = None
    return library


def _bind_training(library: ctypes.CDLL) -> ctypes.CDLL:
    number = ctypes.c_int
    for dtype in ("f32", "bf16", "f16"):
        forward, backward = getattr(library, f"rk_forward_{dtype}"), getattr(library, f"rk_backward_{dtype}")
        forward.argtypes = [pointer] * 4 + [size] * 3 + [number] * 2 + [ctypes.c_float] * 2 + [number]
        backward.argtypes = [pointer] * 7 + [size] * 3 + [number] * 2 + [size, number]
        forward.restype = backward.restype = number
    return library
