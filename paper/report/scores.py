"""Which ledger rows count: runs of one scale together, the learning rate that was chosen, differences seed by seed.

for group, search in glue_groups(rows): kept, tried = chosen(group, search)      # of one task and method
paired({0: 0.8, 1: 0.9}, {0: 0.7, 1: 0.6})                                       # 0.2, from 0.1 to 0.3
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..ledger import given
from ..runs import multimodal
from ..runs.glue import best
from ..runs.reasoning import SEARCH
from ..tuning import decoders
from ..tuning.methods import KNOWN

Row = Mapping[str, Any]
GLUE_RUN = ("task", "method", "learning_rate")  # what tells apart the runs of one scale
SUITE_RUN = ("method", "learning_rate")
RESAMPLES = 10_000
COMPARED = ("road_1", "lora")  # wherever two methods stand for all
LABELS = decoders.LABELS | multimodal.LABELS | {name: method.label for name, method in KNOWN.items()}


class Paired(NamedTuple):
    """The mean difference, its 95 % interval, and over how many seeds."""

    mean: float
    low: float
    high: float
    seeds: int


def label_of(method: str) -> str:
    """A method's name in tables and figures."""
    return LABELS.get(method, method)


def scale_of(recipe: Mapping[str, Any], seeds: int) -> str:
    """ "small: minilm, 200 training rows, 3 epochs, 1 seed"."""
    own_rate = "" if recipe.get("head_learning_rate") else ", classifier at the method's learning rate"
    parts = {
        "model": str(recipe.get("model")),
        "rows": f"{recipe.get('rows')} training rows",
        "epochs": _told_epochs(recipe),
        "test": f"up to {recipe.get('test')} test rows",
        "questions": f"{recipe.get('questions')} questions a task",
        "bf16": "16-bit arithmetic",
        "head_learning_rate": f"classifier at {recipe.get('head_learning_rate')}",
        "frozen_pooler": f"pooler frozen{own_rate}",
        "every_epoch": "the epoch that is best on these questions",
    }
    told = [part for name, part in parts.items() if recipe.get(name)] + [f"{seeds} seed{'s' * (seeds != 1)}"]
    return f"{recipe['scale']}: {', '.join(told)}"


def group_scale(group: Sequence[Row]) -> str:
    """`scale_of` of runs that belong together."""
    return scale_of(group[0]["recipe"], len({row["seed"] for row in group}))


def _told_epochs(recipe: Mapping[str, Any]) -> str:
    if recipe.get("preset"):
        return "the paper's settings of each task"
    return "10 or 20 epochs, batches of 16 or 32" if recipe.get("grid") else _epochs(recipe.get("epochs"))


def rates_of(recipe: Mapping[str, Any]) -> str:
    """What the numbers in brackets count, and the runs they were counted in."""
    if recipe.get("grid"):
        return "in brackets how many settings (learning rate, epochs, batch size) were tried"
    if recipe.get("search_epochs") is None:
        return "in brackets how many learning rates were tried"
    return f"learning rates chosen in runs of {_epochs(recipe['search_epochs'])}, in brackets how many were tried"


def grouped(rows: Iterable[Row], *names: str) -> dict[tuple, list[Row]]:
    """Rows whose recipes agree in everything but `names`, in the order in which they came."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(_key(row["recipe"], *names), []).append(row)
    return groups


def glue_groups(rows: Iterable[Row]) -> list[tuple[list[Row], list[Row]]]:
    """The runs of each scale, and the runs that chose their learning rates: shorter ones, or themselves.

    A group that only chose the rates of another is none of its own.
    """
    groups = grouped(rows, *GLUE_RUN)
    searches = {key: _search_key(group[0]["recipe"]) for key, group in groups.items()}
    only = {
        search
        for key, search in searches.items()
        if search != key and all(row["seed"] == 0 for row in groups.get(search, ()))
    }
    return [(group, groups.get(searches[key], [])) for key, group in groups.items() if key not in only]


def suite_groups(rows: Sequence[Row]) -> list[tuple[list[Row], list[Row]]]:
    """The runs of each scale of a suite of `reasoning`, and those that chose their learning rates: the largest search that
    differs in its rows and questions alone."""
    apart = (*SUITE_RUN, "experiment", "rows", "questions", "tasks", "every_epoch")
    short, runs = (
        list(grouped((row for row in rows if is_search(row) == wanted), *SUITE_RUN).values())
        for wanted in (True, False)
    )

    def search_of(group: Sequence[Row]) -> list[Row]:
        wanted = _key(group[0]["recipe"], *apart)
        return max((found for found in short if _key(found[0]["recipe"], *apart) == wanted), key=size_of, default=[])

    return [(group, search_of(group)) for group in runs]


def suite_choices(search: Sequence[Row]) -> dict[str, float]:
    """Method → the learning rate that its search chose."""
    tried: dict[str, list[Row]] = {}
    for row in search:
        tried.setdefault(row["recipe"]["method"], []).append(row)
    return {method: best(rows)["recipe"]["learning_rate"] for method, rows in tried.items()}


def suite_rates(group: Sequence[Row], search: Sequence[Row]) -> dict[str, float]:
    """Method → the learning rate that counts: the search's choice where it has run, else the first that ran."""
    ran: dict[str, list[float]] = {}
    for row in group:
        ran.setdefault(row["recipe"]["method"], []).append(row["recipe"]["learning_rate"])
    chosen = suite_choices(search)
    return {method: chosen[method] if chosen.get(method) in rates else rates[0] for method, rates in ran.items()}


def is_search(row: Row) -> bool:
    """Whether it only helped to choose a suite's learning rate."""
    return row["recipe"].get("experiment", "").endswith(SEARCH)


def size_of(group: Sequence[Row]) -> tuple[float, int]:
    """How much a scale's runs say: by training rows, None being all; among equals by the number of runs."""
    rows = group[0]["recipe"].get("rows")
    return math.inf if rows is None else rows, len(group)


def chosen(rows: Sequence[Row], search: Sequence[Row]) -> tuple[dict[int, Row], int]:
    """Seed → its run at the rate that the search's validation scores choose; and how many rates the search tried.

    Where the search is not in the ledger the rows' own first seed chooses, and 0 rates are known.
    """
    tried = [row for row in search if row["seed"] == 0]
    first = tried or [row for row in rows if row["seed"] == 0]
    if not first:
        return {}, 0
    wanted = _setting(best(first))
    newest = {row["seed"]: row for row in rows if _setting(row) == wanted}
    return newest, len({_setting(row) for row in tried})


def chosen_runs(group: Sequence[Row], search: Sequence[Row]) -> dict[str, dict[str, tuple[dict[int, Row], int]]]:
    """Method → task → what `chosen` says, in the order in which they ran; both of GLUE."""
    found: dict[str, dict[str, tuple[dict[int, Row], int]]] = {}
    for method, task in dict.fromkeys(map(_of, group)):
        runs = ([row for row in rows if _of(row) == (method, task)] for rows in (group, search))
        found.setdefault(method, {})[task] = chosen(*runs)
    return found


def by_seed(kept: Mapping[int, Row]) -> dict[int, float]:
    """Seed → test score."""
    return {seed: row["metrics"]["test"] for seed, row in kept.items()}


def machine_of(row: Row) -> str:
    """ "2 x86_64 cores, no GPU"."""
    found = row["machine"]
    return f"{found['cpus']} {found['architecture']} cores, {found['accelerator'] or 'no GPU'}"


def mean_by_seed(scores: Iterable[Mapping[int, float]]) -> dict[int, float]:
    """The mean over tasks of every seed that all of them have."""
    tasks = list(scores)
    shared = set.intersection(*(set(task) for task in tasks)) if tasks else set()
    return {seed: statistics.fmean(task[seed] for task in tasks) for seed in sorted(shared)}


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Paired | None:
    """one − other over the seeds that both have; None where these are fewer than two.

    The interval holds the middle 95 % of the means of `RESAMPLES` draws, with replacement, of as many seeds.
    """
    differences = np.array([one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())])
    count = len(differences)
    if count < 2:
        return None
    drawn = np.random.RandomState(0).randint(count, size=(RESAMPLES, count))  # its numbers are the same in any numpy
    low, high = np.quantile(differences[drawn].mean(axis=1), (0.025, 0.975))
    return Paired(float(differences.mean()), float(low), float(high), count)


def _setting(row: Row) -> tuple:
    """What a search chooses: the learning rate, in a grid also epochs and batch size."""
    recipe = row["recipe"]
    return tuple(recipe[name] for name in ("learning_rate", *(("epochs", "batch_size") if recipe.get("grid") else ())))


def _of(row: Row) -> tuple[str, str]:
    return row["recipe"]["method"], row["recipe"]["task"]


def _epochs(count: Any) -> str:
    return f"{count} epoch{'s' * (count != 1)}"


def _key(recipe: Mapping[str, Any], *without: str) -> tuple:
    if recipe.get("preset") or recipe.get("grid"):  # settings of each task's own
        without = (*without, "epochs", "batch_size")
    return tuple(sorted((name, str(value)) for name, value in given(recipe).items() if name not in without))


def _search_key(recipe: Mapping[str, Any]) -> tuple:
    epochs = recipe.get("search_epochs")
    changes = {} if epochs is None else {"epochs": epochs, "search_epochs": None}
    return _key({**recipe, **changes}, *GLUE_RUN)
