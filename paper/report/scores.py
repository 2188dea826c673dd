"""Which ledger rows count: runs of one scale, at the learning rate that was chosen. And differences seed by seed.

for group, search in glue_groups(rows):
    chosen_runs(group, search)["road_1"]["rte"]                # the runs that count, and how many rates were tried
paired_difference({0: 0.8, 1: 0.9}, {0: 0.7, 1: 0.6})          # 0.2, from 0.1 to 0.3
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..ledger import LedgerRow, best_row, switched_on
from ..runs.reasoning import SEARCH

GLUE_RUN = ("task", "method", "learning_rate")  # what tells apart the runs of one scale
SUITE_RUN = ("method", "learning_rate")
RESAMPLES = 10_000
COMPARED = ("road_1", "lora")  # the two methods that tables compare directly


class PairedDifference(NamedTuple):
    """The mean difference of two methods, its 95 % interval, and the number of seeds."""

    mean: float
    low: float
    high: float
    seeds: int


def grouped(rows: Iterable[LedgerRow], *names: str) -> dict[tuple, list[LedgerRow]]:
    """Groups of rows whose setups agree in everything but `names`, in the order in which they came."""
    groups: dict[tuple, list[LedgerRow]] = {}
    for row in rows:
        groups.setdefault(_key(row["recipe"], *names), []).append(row)
    return groups


def glue_groups(rows: Iterable[LedgerRow]) -> list[tuple[list[LedgerRow], list[LedgerRow]]]:
    """(Runs, search) of each scale. The search chose the runs' learning rates; it is shorter runs, or the runs themselves.

    Runs that only chose the rates of others are no scale of their own.
    """
    groups = grouped(rows, *GLUE_RUN)
    searches = {key: _search_key(group[0]["recipe"]) for key, group in groups.items()}
    only = {
        search
        for key, search in searches.items()
        if search != key and all(row["seed"] == 0 for row in groups.get(search, ()))
    }
    return [(group, groups.get(searches[key], [])) for key, group in groups.items() if key not in only]


def suite_groups(rows: Sequence[LedgerRow]) -> list[tuple[list[LedgerRow], list[LedgerRow]]]:
    """(Runs, search) of each scale of a suite. The search chose the runs' learning rates.

    If there are several it is the largest. A search may differ from the runs in its rows, questions and tasks alone.
    """
    apart = (*SUITE_RUN, "experiment", "rows", "questions", "tasks", "every_epoch")
    short, runs = (
        list(grouped((row for row in rows if is_search(row) == wanted), *SUITE_RUN).values())
        for wanted in (True, False)
    )

    def search_of(group: Sequence[LedgerRow]) -> list[LedgerRow]:
        wanted = _key(group[0]["recipe"], *apart)
        return max((found for found in short if _key(found[0]["recipe"], *apart) == wanted), key=size_of, default=[])

    return [(group, search_of(group)) for group in runs]


def suite_choices(search: Sequence[LedgerRow]) -> dict[str, float]:
    """Method → the learning rate that its search chose."""
    tried: dict[str, list[LedgerRow]] = {}
    for row in search:
        tried.setdefault(row["recipe"]["method"], []).append(row)
    return {method: best_row(rows)["recipe"]["learning_rate"] for method, rows in tried.items()}


def suite_rates(group: Sequence[LedgerRow], search: Sequence[LedgerRow]) -> dict[str, float]:
    """Method → the learning rate that counts: the search's choice; if no run has that, the rate of the first run."""
    ran: dict[str, list[float]] = {}
    for row in group:
        ran.setdefault(row["recipe"]["method"], []).append(row["recipe"]["learning_rate"])
    chosen = suite_choices(search)
    return {method: chosen[method] if chosen.get(method) in rates else rates[0] for method, rates in ran.items()}


def is_search(row: LedgerRow) -> bool:
    """Whether the run only helped to choose a suite's learning rate."""
    return row["recipe"].get("experiment", "").endswith(SEARCH)


def size_of(group: Sequence[LedgerRow]) -> tuple[float, int]:
    """What scales are sorted by: their training rows (None is all rows), then their number of runs."""
    rows = group[0]["recipe"].get("rows")
    return math.inf if rows is None else rows, len(group)


def chosen_runs(
    group: Sequence[LedgerRow], search: Sequence[LedgerRow]
) -> dict[str, dict[str, tuple[dict[int, LedgerRow], int]]]:
    """Method → task → (seed → its run at the chosen rate, number of rates tried), in the order in which they ran.

    The search's validation scores choose. If the ledger lacks the search, the first seed's own scores choose, and 0 rates
    are known to have been tried.
    """
    found: dict[str, dict[str, tuple[dict[int, LedgerRow], int]]] = {}
    for method, task in dict.fromkeys(map(_method_and_task, group)):
        runs, tried = ([row for row in rows if _method_and_task(row) == (method, task)] for rows in (group, search))
        found.setdefault(method, {})[task] = _chosen(runs, tried)
    return found


def _chosen(runs: Sequence[LedgerRow], search: Sequence[LedgerRow]) -> tuple[dict[int, LedgerRow], int]:
    tried = [row for row in search if row["seed"] == 0]
    first = tried or [row for row in runs if row["seed"] == 0]
    if not first:
        return {}, 0
    wanted = _searched(best_row(first))
    newest = {row["seed"]: row for row in runs if _searched(row) == wanted}
    return newest, len({_searched(row) for row in tried})


def by_seed(kept: Mapping[int, LedgerRow]) -> dict[int, float]:
    """Seed → the test score of its run."""
    return {seed: row["metrics"]["test"] for seed, row in kept.items()}


def mean_by_seed(scores: Iterable[Mapping[int, float]]) -> dict[int, float]:
    """Seed → the mean over tasks, for every seed that all tasks have."""
    tasks = list(scores)
    shared = set.intersection(*(set(task) for task in tasks)) if tasks else set()
    return {seed: statistics.fmean(task[seed] for task in tasks) for seed in sorted(shared)}


def paired_difference(one: Mapping[int, float], other: Mapping[int, float]) -> PairedDifference | None:
    """one − other over the seeds that both have; None if these are fewer than two.

    The interval holds the middle 95 % of `RESAMPLES` means, each over as many seeds drawn with replacement.
    """
    differences = np.array([one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())])
    count = len(differences)
    if count < 2:
        return None
    drawn = np.random.RandomState(0).randint(count, size=(RESAMPLES, count))  # its numbers are the same in any numpy
    low, high = np.quantile(differences[drawn].mean(axis=1), (0.025, 0.975))
    return PairedDifference(float(differences.mean()), float(low), float(high), count)


def _searched(row: LedgerRow) -> tuple:
    """The settings that a search chooses: the learning rate, in a grid also epochs and batch size."""
    setup = row["recipe"]
    return tuple(setup[name] for name in ("learning_rate", *(("epochs", "batch_size") if setup.get("grid") else ())))


def _method_and_task(row: LedgerRow) -> tuple[str, str]:
    return row["recipe"]["method"], row["recipe"]["task"]


def _key(setup: Mapping[str, Any], *without: str) -> tuple:
    if setup.get("preset") or setup.get("grid"):  # each task has epochs and batch size of its own
        without = (*without, "epochs", "batch_size")
    return tuple(sorted((name, str(value)) for name, value in switched_on(setup).items() if name not in without))


def _search_key(setup: Mapping[str, Any]) -> tuple:
    epochs = setup.get("search_epochs")
    changes = {} if epochs is None else {"epochs": epochs, "search_epochs": None}
    return _key({**setup, **changes}, *GLUE_RUN)
