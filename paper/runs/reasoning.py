"""Commonsense (tables 3, C.5, C.6, D.2) and arithmetic (tables 4, C.7): one model for all tasks of a suite, generative.

run("commonsense", Settings(rows=64), Ledger(path), data=Path("../shared/data"), methods=["base", "road_1"])

Every method has its learning rate of the literature (`rate_of`); with a `Search` it has the one, of a few around that, whose
short run answers most of the training rows that it was not shown.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from roadkit.errors import RecipeError, nearest
from roadkit.train.data.tables import Table

from ..ledger import Ledger
from ..scoring import arithmetic, commonsense
from ..scoring.files import find_rows
from ..scoring.glue import sample_rows
from ..tuning.decoders import BASE, FULL, Settings, Tuned, label_of, rate_of
from ..tuning.loreft import REASONING
from .glue import best
from .jobs import Job, log, run_jobs

METHODS_RUN = (BASE, "road_1", "lora", "road_2")
SETTINGS = {  # suite → scale → what its runs share (table C.5)
    "commonsense": {"small": Settings(), "full": FULL},
    "arithmetic": {
        "small": dataclasses.replace(Settings(), new_tokens=128),
        "full": dataclasses.replace(FULL, new_tokens=128, epochs=12),
    },
}


SEARCH = "_search"  # ends the name of the experiment in the ledger
TRIED = (1, 1 / 3, 3, 1 / 9)  # a search's learning rates, in a method's own


@dataclass(frozen=True)
class Search:
    """Runs that choose the learning rates.

    rates      that every method tries, the same number for all
    rows       training rows of a run
    held_out   questions of each task, from its training rows, apart from those
    """

    rates: int = 3
    rows: int = 500
    held_out: int = 75

    def tried(self, method: str) -> tuple[float, ...]:
        return tuple(float(f"{rate_of(method) * factor:.2g}") for factor in TRIED[: self.rates])

    def recipe(self, suite: str, settings: Settings, method: str, learning_rate: float) -> dict[str, Any]:
        """What identifies one of its runs in the ledger."""
        return _recipe(suite + SEARCH, self.shorter(settings), SUITES[suite].trained, method, learning_rate)

    def shorter(self, settings: Settings) -> Settings:
        """The settings of its runs."""
        return dataclasses.replace(settings, rows=self.rows, questions=self.held_out)


@dataclass(frozen=True)
class Suite:
    """tasks scored; those with training rows; how rows are read; and whether a text answers a row.

    combined  the paper's training file, below the data folder, which the full scale reads; and what to know of it
    strict    LoReFT's rule, where the suite has one
    """

    tasks: tuple[str, ...]
    trained: tuple[str, ...]
    load: Callable[..., Table]
    correct: Callable[[str, str, str], bool]
    combined: str
    warning: str = ""
    strict: Callable[[str, str], bool] | None = None


SUITES = {
    "commonsense": Suite(
        tuple(commonsense.ANSWERS),
        commonsense.TRAINED,
        commonsense.load,
        lambda task, text, answer: commonsense.extract(task, text) == answer,
        "commonsense/commonsense_170k",
        strict=lambda text, answer: commonsense.extract_strict(text) == answer,
    ),
    "arithmetic": Suite(
        arithmetic.TASKS,
        tuple(arithmetic.TRAINED),
        arithmetic.load,
        arithmetic.correct,
        "math/math_10k",
        "math_10k holds rows that MAWPS tests: MAWPS scores say less than they seem to",
    ),
}


def run(
    suite: str,
    settings: Settings,
    ledger: Ledger,
    *,
    data: Path,
    methods: Sequence[str] = METHODS_RUN,
    tasks: Sequence[str] = (),
    learning_rate: float | None = None,
    search: Search | None = None,
    seeds: Iterable[int] = (0,),
    every_epoch: bool = False,
    budget: float | None = None,
    progress: Callable[[str], None] = log.info,
) -> int:
    """Do the runs that the ledger lacks; → how many the budget left out.

    tasks           to score; none: all of the suite
    learning_rate   of every method but the base, in place of its own (`rate_of`)
    search          chooses the learning rates first; a method whose search the budget cut short waits for the next call
    every_epoch     score after each epoch and report the best, which the test questions choose, as the paper does (§C.2)
    """
    if suite not in SUITES:
        raise RecipeError(f"no suite {suite!r}{nearest(suite, SUITES)}; there are {', '.join(SUITES)}")
    tasks = tuple(tasks) or SUITES[suite].tasks
    if unknown := [task for task in tasks if task not in SUITES[suite].tasks]:
        raise RecipeError(f"{suite} has no task {unknown[0]!r}{nearest(unknown[0], SUITES[suite].tasks)}")
    if search and learning_rate is not None:
        raise RecipeError(f"a search chooses the learning rates, and {learning_rate:g} was given: leave one out")
    rates = {method: rate_of(method) for method in methods}
    if learning_rate is not None:
        rates |= {method: learning_rate for method in methods if method != BASE}
    if settings.scale == "full" and (warning := SUITES[suite].warning):
        progress(warning)

    def jobs() -> Iterator[Job]:
        if search:
            yield from _search_jobs(suite, settings, search, data, rates)
        chosen = _chosen(suite, settings, search, ledger, rates) if search else rates
        for seed in seeds:
            yield from _jobs(suite, settings, data, chosen, tasks, seed, every_epoch)

    return run_jobs(jobs(), ledger, budget=budget, progress=progress)


def _recipe(experiment, settings, tasks, method, rate) -> dict[str, Any]:
    return {
        "experiment": experiment,
        **dataclasses.asdict(settings),
        "tasks": list(tasks),
        "method": method,
        "learning_rate": rate,
    }


def _search_jobs(suite, settings, search, data, methods) -> Iterator[Job]:
    """Every method with its first rate, then its second."""
    for i in range(search.rates):
        for method in methods:
            if method != BASE:
                rate = search.tried(method)[i]
                compute = partial(_search, SUITES[suite], search.shorter(settings), data, method, rate)
                name = f"{suite}, {label_of(method)}, {rate:g}, {search.rows} rows to choose a learning rate"
                yield Job(name, search.recipe(suite, settings, method, rate), 0, compute)


def _chosen(suite, settings, search, ledger, methods) -> dict[str, float]:
    """Method → the best rate of its search, where that is done; the base has none. `methods` have their own rates."""
    chosen = {}
    for method, rate in methods.items():
        if method == BASE:
            chosen[method] = rate
            continue
        found = [ledger.find(search.recipe(suite, settings, method, rate), seed=0) for rate in search.tried(method)]
        if all(found):
            chosen[method] = best(found)["recipe"]["learning_rate"]
    return chosen


def _jobs(suite, settings, data, rates, tasks, seed, every_epoch) -> Iterator[Job]:
    for method, rate in rates.items():
        recipe = _recipe(suite, settings, tasks, method, rate) | ({"every_epoch": True} if every_epoch else {})
        yield Job(
            f"{suite}, {label_of(method)}, {rate:g}, seed {seed}",
            recipe,
            seed,
            partial(_compute, SUITES[suite], settings, data, method, rate, tasks, seed, every_epoch),
        )


def _compute(suite, settings, data, method, rate, tasks, seed, every_epoch) -> dict[str, Any]:
    rows = training_rows(suite, data, settings, seed=seed)
    tuned = Tuned.train(settings, method, rate, rows, seed=seed, every_epoch=every_epoch, edits=REASONING)
    asked = {task: sample_rows(suite.load(task, data, train=False), settings.questions, seed=0).rows for task in tasks}
    epochs = [_scored(suite, settings, asked, tuned, epoch) for epoch in range(len(tuned.epochs))]
    found = max(epochs, key=lambda scores: statistics.fmean(scores["accuracy"].values()))
    found |= {"questions": {task: len(rows) for task, rows in asked.items()}, **tuned.facts}
    return found | ({"epochs": [scores["accuracy"] for scores in epochs]} if every_epoch else {})


def _search(suite, settings, data, method, rate) -> dict[str, Any]:
    rows, asked = held_out_rows(suite, data, settings)
    tuned = Tuned.train(settings, method, rate, rows, seed=0, edits=REASONING)
    found = _scored(suite, settings, asked, tuned)
    return found | {"validation": statistics.fmean(found["accuracy"].values()), **tuned.facts}


def _scored(suite, settings, asked, tuned, epoch=-1) -> dict[str, Any]:
    """What the model after an epoch answers to all rows that are asked."""
    instructions = [row["instruction"] for rows in asked.values() for row in rows]
    return _scores(suite, asked, tuned.answer(instructions, new_tokens=settings.new_tokens, epoch=epoch))


def _scores(suite: Suite, asked: Mapping[str, Sequence[Mapping[str, Any]]], texts: Sequence[str]) -> dict[str, Any]:
    """Accuracy of each task, by the suite's rules; `texts` answer the rows of all tasks, in order."""
    flat = [(task, row) for task, rows in asked.items() for row in rows]
    accuracy, strict, answered, foreign = {}, {}, 0, 0
    for task, rows in asked.items():
        own = [(text, str(row["answer"])) for (name, row), text in zip(flat, texts, strict=True) if name == task]
        accuracy[task] = sum(suite.correct(task, *pair) for pair in own) / len(rows)
        if suite.strict:
            strict[task] = sum(suite.strict(*pair) for pair in own) / len(rows)
            silent = [text for text, _ in own if commonsense.extract(task, text) == ""]
            answered += len(own) - len(silent)
            foreign += sum(any(commonsense.extract(other, text) for other in commonsense.ANSWERS) for text in silent)
    found: dict[str, Any] = {"accuracy": accuracy}
    if suite.strict:  # foreign: answered with a word of another task's
        found |= {"strict": strict, "answered": answered / len(flat), "foreign": foreign / len(flat)}
    return found


def training_rows(suite: Suite, data: Path, settings: Settings, *, seed: int) -> Table:
    """The paper's training file at full scale; else the same share of every task that has training rows, in order."""
    if settings.scale == "full":
        path = data / suite.combined
        return sample_rows(find_rows(path.parent, path.name), settings.rows, seed=seed)
    share = None if settings.rows is None else -(-settings.rows // len(suite.trained))
    tables = [sample_rows(suite.load(task, data, train=True), share, seed=seed) for task in suite.trained]
    rows = [row for table in tables for row in table.rows][: settings.rows]
    return Table(rows, list(range(1, len(rows) + 1)), f"{data}, {', '.join(suite.trained)}")


def held_out_rows(suite: Suite, data: Path, settings: Settings) -> tuple[Table, dict[str, Sequence[Mapping[str, Any]]]]:
    """Training rows in equal shares, and `settings.questions` others of each task, at either scale from the tasks' own
    training files. Raises `RecipeError` for a file that is too short."""
    count, share = settings.questions or 0, -(-(settings.rows or 0) // len(suite.trained))
    rows, asked = [], {}
    for task in suite.trained:
        table = sample_rows(suite.load(task, data, train=True), share + count, seed=0)
        if len(table) <= count:
            raise RecipeError(f"{table.origin} has {len(table)} rows, {count} are to be held out: hold out fewer")
        held = sample_rows(table, count, seed=0)
        asked[task], numbers = held.rows, set(held.numbers)
        rows += [row for row, number in zip(table.rows, table.numbers, strict=True) if number not in numbers]
    return Table(rows, list(range(1, len(rows) + 1)), f"{data}, {', '.join(suite.trained)}"), asked
