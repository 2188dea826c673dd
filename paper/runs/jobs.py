"""Runs that wait to be done: those that the ledger holds are passed over, the others run while the budget lasts.

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

log = logging.getLogger("paper")


def cpu_seconds() -> float:
    """Processor seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


@dataclass(frozen=True)
class Job:
    """One run that may have to be done.

    setup     with `seed` it identifies the run in the ledger
    compute   does the run; → its metrics
    writes    a file that `compute` leaves; if it is missing, the run is done again
    """

    name: str
    setup: Mapping[str, Any]
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
    """Do the runs that are missing, in order, each row on disk before the next run begins. → how many were left out.

    budget   processor minutes; a run is left out if one as long as the longest so far would not fit
    """
    start, longest, left = cpu_seconds(), 0.0, 0
    for job in jobs:
        if ledger.find(job.setup, seed=job.seed) is not None and (job.writes is None or job.writes.is_file()):
            continue
        spent = cpu_seconds() - start
        if budget is not None and spent + longest >= 60 * budget:
            left += 1
            continue
        metrics = job.compute()
        seconds = cpu_seconds() - start - spent
        ledger.append(job.setup, seed=job.seed, metrics=metrics, seconds=seconds)
        longest = max(longest, seconds)
        if seconds > 1:  # a trainer and its model hold each other; this frees them before the next run
            gc.collect()
        progress(f"{job.name}: {seconds:.0f} s of processor time")
    if left:
        progress(f"{left} runs left: the budget of {budget:g} processor minutes is spent")
    return left
