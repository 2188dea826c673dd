"""GLUE (tables 2 and C.1 to C.4): every method with its own learning rate, chosen on validation, scored on test.

    run(Settings(rows=400), Ledger(path), data=Path("../shared/data"), methods=["road_1", "lora"], budget=10)

The first seed tries each learning rate, in shorter runs where `Settings.search_epochs` says so; the best on validation
then runs with every seed. Test scores are in every row, but only those of the chosen rate go into a table.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from .encoders import EncoderData, Settings
from .jobs import Job, log, run_jobs
from .ledger import Ledger
from .methods import METHODS, find

SMALL_TASKS = ("mrpc", "stsb", "cola", "sst2", "rte")
FULL_TASKS = (*SMALL_TASKS, "qnli", "qqp", "mnli")
TASKS = {"small": SMALL_TASKS, "full": FULL_TASKS}  # by scale
Preset = tuple[float, int, int]  # learning rate, epochs, batch size


def _presets(*shared: tuple[str, Preset]) -> dict[str, Preset]:
    return {task: preset for tasks, preset in shared for task in tasks.split()}


PRESETS = {  # table C.3: RoAd's best settings of each task
    "roberta-base": _presets(("rte mrpc stsb cola", (3e-3, 20, 32)), ("sst2 qnli qqp mnli", (1e-3, 10, 16))),
    "roberta-large": _presets(
        ("rte mrpc", (3e-3, 20, 32)), ("stsb cola", (1e-3, 20, 32)), ("sst2 qnli qqp mnli", (1e-3, 10, 32))
    ),
}


def run(
    settings: Settings,
    ledger: Ledger,
    *,
    data: Path | None,
    tasks: Sequence[str] = SMALL_TASKS,
    methods: Sequence[str] = tuple(METHODS),
    seeds: int = 1,
    num_rates: int = 4,
    presets: bool = False,
    budget: float | None = None,
    progress: Callable[[str], None] = log.info,
) -> int:
    """Do the runs that the ledger lacks; → how many the budget left out.

    data        folder with glue/…, or None for the hub
    num_rates   learning rates a method tries, the same number for all (`Method.rates_at`)
    presets     no search: `PRESETS`, the paper's best settings of RoAd for each task
    """
    for method in methods:
        find(method)
    runs = _Runs(data)
    if presets:
        jobs = _preset_jobs(runs, settings, tasks, methods, seeds)
    else:
        jobs = _searched_jobs(runs, settings, ledger, tasks, methods, seeds, num_rates)
    return run_jobs(jobs, ledger, budget=budget, progress=progress)


def recipe_of(
    settings: Settings, task: str, method: str, learning_rate: float, *, preset: bool = False
) -> dict[str, Any]:
    """What identifies a run in the ledger."""
    return {
        "experiment": "glue",
        **dataclasses.asdict(settings),
        "task": task,
        "method": method,
        "learning_rate": learning_rate,
        **({"preset": True} if preset else {}),
    }


def searching(settings: Settings) -> Settings:
    """The settings of the runs that choose a learning rate; runs without a search of their own are their own."""
    if settings.search_epochs is None:
        return settings
    return dataclasses.replace(settings, epochs=settings.search_epochs, search_epochs=None)


class _Runs:
    """Makes jobs; a task's rows are loaded once for each seed and part of the settings that they depend on."""

    def __init__(self, data: Path | None):
        self.data = data
        self._loaded: dict[tuple[str, int, int], EncoderData] = {}

    def job(self, settings: Settings, task: str, method: str, rate: float, seed: int, *, preset: bool = False) -> Job:
        return Job(
            f"{task}, {METHODS[method].label}, {rate:g}, {settings.epochs} epochs, seed {seed}",
            recipe_of(settings, task, method, rate, preset=preset),
            seed,
            lambda: _compute(self._rows(settings, task, seed), settings.epochs, method, rate),
        )

    def _rows(self, settings: Settings, task: str, seed: int) -> EncoderData:
        key = task, seed, settings.batch_size
        if key not in self._loaded:
            self._loaded[key] = EncoderData.load(task, settings, data=self.data, seed=seed)
        return self._loaded[key]


def _searched_jobs(runs, settings, ledger, tasks, methods, seeds, num_rates) -> Iterator[Job]:
    """The search of every method and task, then the seeds, so that a small budget gives broad tables first."""
    search, pairs = searching(settings), list(itertools.product(tasks, methods))
    rates = {method: find(method).rates_at(settings.scale, num_rates) for method in methods}
    for number in range(num_rates):
        for task, method in pairs:
            yield runs.job(search, task, method, rates[method][number], 0)
    for seed in range(seeds):
        for task, method in pairs:
            found = _searched(ledger, search, task, method)
            if found.keys() >= set(rates[method]):  # chosen only where the whole search is done
                rate = best(list(found.values()))["recipe"]["learning_rate"]
                yield runs.job(settings, task, method, rate, seed)


def _searched(ledger: Ledger, search: Settings, task: str, method: str) -> dict[float, dict[str, Any]]:
    """Learning rate → its run, of every rate that was ever tried."""
    found: dict[float, dict[str, Any]] = {}
    for row in ledger.rows():
        rate = row["recipe"].get("learning_rate")
        if row["seed"] == 0 and row["recipe"] == recipe_of(search, task, method, rate):
            found[rate] = row
    return found


def _preset_jobs(runs, settings, tasks, methods, seeds) -> Iterator[Job]:
    name = settings.model.rpartition("/")[2]
    if name not in PRESETS or any(not method.startswith("road") for method in methods):
        raise RecipeError(
            f"there are presets of RoAd on {' and '.join(PRESETS)}, not of {', '.join(methods)} on {name}: "
            "leave --presets out to search"
        )
    for seed in range(seeds):
        for task, method in itertools.product(tasks, methods):
            rate, epochs, batch_size = PRESETS[name][task]
            own = dataclasses.replace(settings, epochs=epochs, batch_size=batch_size)
            yield runs.job(own, task, method, rate, seed, preset=True)


def best(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The row with the best validation score, of equals (a classifier that has learnt nothing yet) the least loss."""
    return max(rows, key=lambda row: (row["metrics"]["validation"], -row["metrics"].get("validation_loss", 0.0)))


def _compute(data: EncoderData, epochs: int, method: str, learning_rate: float) -> dict[str, Any]:
    fitted = data.fit(data.fresh(), method, learning_rate, epochs=epochs)
    return {
        "metric": data.metric,
        "validation": fitted.validation[data.metric],
        "validation_loss": fitted.validation["loss"],
        "test": data.score(fitted.model, data.test),
        "trainable": fitted.trainable,
        "steps": fitted.steps,
        "train_loss": fitted.train_loss,
    }
