"""RoAd's best recipe against LoRA's on GLUE: as many of each (`FAMILIES`), chosen on validation, scored on test.

    run(Settings(rows=400, search_epochs=2), Ledger(path), data=Path("../shared/data"), seeds=5)

A recipe is chosen for all tasks together: the one whose mean over the tasks is highest on the validation rows of the first
seed, each task at its own best learning rate. Every recipe tries as many rates, so both families' searches cost the same.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..ledger import Ledger
from ..tuning.encoders import Settings
from ..tuning.methods import FAMILIES
from . import glue
from .jobs import cpu_seconds

Validation = dict[str, dict[str, float]]  # method → task → score


def run(
    settings: Settings,
    ledger: Ledger,
    *,
    tasks: Sequence[str] = glue.SMALL_TASKS,
    seeds: int = 1,
    budget: float | None = None,
    **options: Any,
) -> int:
    """Search both families, then run what was chosen with every seed; → how many runs the budget left out.

    budget    processor minutes of both together
    options   data, num_rates, output and progress of `glue.run`
    """
    start = cpu_seconds()
    options |= {"tasks": tasks}
    names = [name for family in FAMILIES.values() for name in family]
    left = glue.run(settings, ledger, methods=names, seeds=0, budget=budget, **options)
    if left:
        return left
    if budget is not None:
        budget -= (cpu_seconds() - start) / 60
    rows = ledger.rows()
    tried = [
        row
        for name, task in itertools.product(names, tasks)
        for row in glue.searched(rows, [glue.searching(settings)], task, name).values()
    ]
    chosen = list(choose(validations(tried), tasks).values())
    return glue.run(settings, ledger, methods=chosen, seeds=seeds, budget=budget, **options)


def validations(search: Iterable[Mapping[str, Any]]) -> Validation:
    """Method → task → its best score on the first seed's validation rows."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in search:
        if row["seed"] == 0:
            found.setdefault((row["recipe"]["method"], row["recipe"]["task"]), []).append(row)
    scores: Validation = {}
    for (method, task), rows in found.items():
        scores.setdefault(method, {})[task] = glue.best(rows)["metrics"]["validation"]
    return scores


def choose(scores: Validation, tasks: Sequence[str]) -> dict[str, str]:
    """Family → its recipe with the highest mean over `tasks`, of families whose recipes were all tried on all of them."""
    means = {
        method: statistics.fmean(own[task] for task in tasks)
        for method, own in scores.items()
        if own.keys() >= set(tasks)
    }
    return {
        family: max(names, key=means.__getitem__) for family, names in FAMILIES.items() if means.keys() >= set(names)
    }
