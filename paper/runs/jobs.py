"""Runs that wait to be done: those the ledger holds are passed over, the others run while the budget lasts.

left = run_jobs(jobs, ledger, budget=10)      # processor minutes of this process
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ledger import Ledger

log = logging.getLogger("roadkit.experiments")


def cpu_seconds() -> float:
    """Processor seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


@dataclass(frozen=True)
class Job:
    """One run: `compute` gives its metrics, `recipe` and `seed` say what it is.

    writes   a file that `compute` leaves; where it is missing the run is done again
    """

    name: str
    recipe: Mapping[str, Any]
    seed: int
    compute: Callable[[], Mapping[str, Any]]
    writes: Path | None = None


def run_jobs(
    jobs: Iterable[Job],
    ledger: Ledger,
    *,
    budget: float | None = None,
    progress: Callable[[str], None] = log.info,
) -> int:
    """Run what is missing, in order, each row on disk before the next begins. → how many were left for the next call.

    budget  processor minutes; a run that the longest so far shows not to fit is left out
    """
    start, longest, left = cpu_seconds(), 0.0, 0
    for job in jobs:
        if ledger.find(job.recipe, seed=job.seed) is not None and (job.writes is None or job.writes.is_file()):
            continue
        spent = cpu_seconds() - start
        if budget is not None and spent + longest >= 60 * budget:
            left += 1
            continue
        metrics = job.compute()
        seconds = cpu_seconds() - start - spent
        ledger.append(job.recipe, seed=job.seed, metrics=metrics, seconds=seconds)
        longest = max(longest, seconds)
        if seconds > 1:  # a trainer and its model hold each other, and Python is in no hurry
            gc.collect()
        progress(f"{job.name}: {seconds:.0f} s of processor time")
    if left:
        progress(f"{left} runs left: the budget of {budget:g} processor minutes is spent")
    return left
