"""RoAd against LoRA on GLUE, each at its best: of either family the member is taken that validation chooses.

    run_families(EncoderSettings(rows=400, search_epochs=2), Ledger(path), data=None, seeds=5)

Both families (`FAMILIES`) have as many members, and each member tries as many learning rates, so both searches cost the
same. One member is chosen for all tasks: the one with the highest mean over them, each task at its own best learning rate, on
the validation rows of the first seed. Tables call the members recipes.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from ..ledger import Ledger, LedgerRow, best_row
from ..tuning.encoders import EncoderSettings
from ..tuning.methods import FAMILIES
from .glue import SMALL_TASKS, run_glue, runs_tried, search_settings
from .jobs import cpu_seconds

Validation = dict[str, dict[str, float]]  # method → task → score


def run_families(
    settings: EncoderSettings,
    ledger: Ledger,
    *,
    tasks: Sequence[str] = SMALL_TASKS,
    seeds: int = 1,
    budget: float | None = None,
    **options: Any,
) -> int:
    """Search both families, then run the chosen members with every seed; → how many runs the budget left out.

    budget    processor minutes of search and runs together
    options   data, num_rates, output and progress of `run_glue`
    """
    start = cpu_seconds()
    options |= {"tasks": tasks}
    names = [name for family in FAMILIES.values() for name in family]
    left = run_glue(settings, ledger, methods=names, seeds=0, budget=budget, **options)
    if left:
        return left
    if budget is not None:
        budget -= (cpu_seconds() - start) / 60
    rows = ledger.rows()
    tried = [
        row
        for name, task in itertools.product(names, tasks)
        for row in runs_tried(rows, [search_settings(settings)], task, name).values()
    ]
    chosen = list(choose_members(validation_scores(tried), tasks).values())
    return run_glue(settings, ledger, methods=chosen, seeds=seeds, budget=budget, **options)


def validation_scores(search: Iterable[LedgerRow]) -> Validation:
    """Method → task → its best score on the first seed's validation rows."""
    found: dict[tuple[str, str], list[LedgerRow]] = {}
    for row in search:
        if row["seed"] == 0:
            found.setdefault((row["recipe"]["method"], row["recipe"]["task"]), []).append(row)
    scores: Validation = {}
    for (method, task), rows in found.items():
        scores.setdefault(method, {})[task] = best_row(rows)["metrics"]["validation"]
    return scores


def choose_members(scores: Validation, tasks: Sequence[str]) -> dict[str, str]:
    """Family → its member with the highest mean over `tasks`. A family is left out unless all its members have all tasks."""
    means = {
        method: statistics.fmean(own[task] for task in tasks)
        for method, own in scores.items()
        if own.keys() >= set(tasks)
    }
    return {
        family: max(names, key=means.__getitem__) for family, names in FAMILIES.items() if means.keys() >= set(names)
    }
