"""`roadkit bench mixed --json`: measure roadkit and its peers in turn, in one run."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import typer

from ..errors import RoadkitError, nearest

ON_GPU = ("mixed", "figure4")  # whose sides can stand on one
FOLDER = Path(__file__).resolve().parents[3] / "bench"


def bench(
    name: str = typer.Argument("list", help="The benchmark to run; list names them."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object and nothing else."),
    rounds: int = typer.Option(0, help="How often each side is measured; 0 leaves it to the benchmark."),
    device: str = typer.Option("cpu", help="cpu, which hides GPUs, or cuda (mixed and figure4 only)."),
) -> None:
    """Measure roadkit beside its peers. Needs a source checkout.

    The last line printed is a JSON object.
    """
    if not FOLDER.is_dir():
        raise RoadkitError(
            "benchmarks come with the source checkout: clone the repository and install it with `pip install -e .`"
        )
    known = {path.stem.removeprefix("bench_"): path for path in sorted(FOLDER.glob("bench_*.py"))}
    if name == "list":
        for path in known.values():
            print(f"{path.stem.removeprefix('bench_'):10} {(path.read_text().split(chr(10))[0]).strip(chr(34))}")
        return
    if name not in known:
        raise RoadkitError(f"no benchmark {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    if device != "cpu":
        if name not in ON_GPU:
            raise RoadkitError(f"bench {name} measures the CPU; --device {device} is for {' and '.join(ON_GPU)}")
        from .. import models

        os.environ["ROADKIT_BENCH_DEVICE"] = models.best_device(device)
    harness = _load("harness")  # first: it hides GPUs
    measured = _load(f"bench_{name}").run(**({"rounds": rounds} if rounds else {}))
    harness.report(measured, quiet=json)


def _load(name: str) -> Any:
    """A file of bench/ as a module. The folder is no part of roadkit, so it is found by its path."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))  # the files import each other
    return importlib.import_module(name)
