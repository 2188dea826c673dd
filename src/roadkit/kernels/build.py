"""Compiles the C sources with the machine's own C compiler, once: the cache keeps one library a source and processor.

    path = build("inference", sources_of("inference"), find_compiler())

Torch's own OpenMP runtime is shared: the library asks for `libgomp.so.1`, which torch has loaded already.

With ROADKIT_NATIVE=portable a library is built for any server processor of the last ten years instead of this one. If
the cache has it, no compiler is needed: container images carry it so.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..files import cache_dir

FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC"]
X86 = ("x86_64", "AMD64")
LIBRARIES = {
    "inference": ("rotations.c", "linear.c", "elementwise.c", "attention.c", "decoder_layer.c"),
    "training": ("training.c",),
}


def sources_of(library: str) -> list[Path]:
    """The C files of one of `LIBRARIES`."""
    return [Path(__file__).parent / "c" / name for name in LIBRARIES[library]]


def find_compiler() -> str | None:
    """The C compiler that $CC names, or the first of the usual ones on the path."""
    names = [name for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name]
    return next((path for name in names if (path := shutil.which(name))), None)


def build(name: str, sources: Sequence[Path], compiler: str | None) -> Path | None:
    """The shared library of `sources`, from the cache if it is there; None if it is not and there is no compiler.

    Raises `OSError` or `subprocess.SubprocessError` if compiling fails.
    """
    if os.environ.get("ROADKIT_NATIVE") == "portable":
        flags = [*FLAGS, "-march=x86-64-v3" if platform.machine() in X86 else "-march=armv8.2-a"]
        made_by = ""  # whoever built it, wherever
    elif compiler is None:
        return None
    else:
        flags = [*FLAGS, "-march=native", *(["-mprefer-vector-width=512"] if platform.machine() in X86 else [])]
        made_by = f"{compiler} {_processor()}"
    key = hashlib.sha256()
    headers = sorted({header for source in sources for header in source.parent.glob("*.h")})
    for part in (
        b"one unit",
        *(path.read_bytes() for path in (*headers, *sources)),
        " ".join(flags).encode(),
        made_by.encode(),
    ):
        key.update(part)
    target = cache_dir() / "native" / f"{name}-{key.hexdigest()[:16]}.so"
    if target.exists():
        return target
    if compiler is None:
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        # one unit of all sources: apart, what one calls of another is not inlined, which costs 5 % of a step of 32 requests
        unit = "".join(f'#include "{source}"\n' for source in sources)
        command = [compiler, *flags, "-x", "c", "-", "-o", str(built), "-lm"]
        subprocess.run(command, input=unit, check=True, capture_output=True, text=True)
        os.replace(built, target)
    return target


def _processor() -> str:
    """What `-march=native` depends on, so that a cache shared by different machines holds one file for each."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
