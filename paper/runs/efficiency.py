"""Efficiency (table D.1, figure 4): the benchmarks of bench/, run one after the other, their figures in the ledger.

run_efficiency(Ledger(path), names=["train", "merge", "mixed"])       # needs a source checkout and a quiet machine
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from roadkit.errors import RoadkitError

from ..ledger import Ledger
from .jobs import Job, log, run_jobs

BENCHMARKS = {  # name → what it shows
    "train": "time and memory of a training step (table D.1)",
    "merge": "merging and undoing it",
    "mixed": "a different adapter for each request (figure 4 middle)",
    "scaling": "many adapters (figure 4 right)",
    "figure4": "LoRA kept apart over its rank, and throughput over the tokens generated (figure 4 left and middle)",
}


def run_efficiency(
    ledger: Ledger,
    *,
    names: Sequence[str] = tuple(BENCHMARKS),
    rounds: int = 0,
    device: str = "cpu",
    seed: int = 0,
    progress: Callable[[str], None] = log.info,
) -> None:
    """Run the benchmarks that the ledger lacks.

    rounds   0: each benchmark's own choice
    device   on which mixed and figure4 run; the others take none but the CPU
    seed     tells repetitions apart
    """

    def jobs() -> Iterator[Job]:
        for name in names:
            setup = {"experiment": "efficiency", "bench": name, "rounds": rounds}
            setup |= {} if device == "cpu" else {"device": device}
            yield Job(f"efficiency, {name}", setup, seed, partial(_measure, name, rounds, device))

    run_jobs(jobs(), ledger, progress=progress)


def _measure(name: str, rounds: int, device: str) -> dict[str, Any]:
    """The JSON object that a benchmark prints last. Raises `RoadkitError` if it fails."""
    command = [sys.executable, "-m", "roadkit", "bench", name, "--json", "--rounds", str(rounds)]
    command += [] if device == "cpu" else ["--device", device]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        problem = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise RoadkitError(f"the benchmark {name} failed ({done.returncode}): {problem}")
    return json.loads(lines[-1])
