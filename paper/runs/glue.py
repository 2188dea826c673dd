"""GLUE (tables 2 and C.1 to C.4): every method with its own learning rate, chosen on validation, scored on test.

    run_glue(EncoderSettings(rows=400), Ledger(path), data=None, methods=["road_1", "lora"], budget=10)

The first seed tries each learning rate, in shorter runs if `EncoderSettings.search_epochs` is given. The rate that is best
on validation then runs with every seed. Every row has test scores, but only those of the chosen rate go into a table.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from roadkit.adapter import Adapter
from roadkit.errors import RecipeError

from ..ledger import Ledger, LedgerRow, run_key, switched_on, validation_rank
from ..tuning.encoders import EncoderData, EncoderSettings
from ..tuning.methods import METHODS, find_method
from ..tuning.shared_batches import save_fitted, score_in_shared_batches
from .jobs import Job, log, run_jobs

SMALL_TASKS = ("mrpc", "stsb", "cola", "sst2", "rte")
FULL_TASKS = (*SMALL_TASKS, "qnli", "qqp", "mnli")
FEW_ROWS = ("rte", "mrpc", "stsb", "cola")
TASKS_AT = {"small": SMALL_TASKS, "full": FULL_TASKS}
Preset = tuple[float, int, int]  # learning rate, epochs, batch size


def _presets(*shared: tuple[str, Preset]) -> dict[str, Preset]:
    return {task: preset for tasks, preset in shared for task in tasks.split()}


PRESETS = {  # table C.3: RoAd's best settings for each task
    "roberta-base": _presets((" ".join(FEW_ROWS), (3e-3, 20, 32)), ("sst2 qnli qqp mnli", (1e-3, 10, 16))),
    "roberta-large": _presets(
        ("rte mrpc", (3e-3, 20, 32)), ("stsb cola", (1e-3, 20, 32)), ("sst2 qnli qqp mnli", (1e-3, 10, 32))
    ),
}


def run_glue(
    settings: EncoderSettings,
    ledger: Ledger,
    *,
    data: Path | None,
    tasks: Sequence[str] = SMALL_TASKS,
    methods: Sequence[str] = tuple(METHODS),
    seeds: int = 1,
    num_rates: int = 4,
    presets: bool = False,
    grid: bool = False,
    output: Path | None = None,
    budget: float | None = None,
    progress: Callable[[str], None] = log.info,
) -> int:
    """Do the runs that the ledger lacks; → how many the budget left out.

    data        the folder of `read_rows`
    num_rates   learning rates that each method tries, the same number for all (`Method.rates_at`)
    presets     no search: `PRESETS`, the paper's best settings of RoAd for each task
    grid        each rate is tried with every number of epochs and batch size of table C.2
    output      keep the adapters of RoAd's runs here, and score their tasks in shared batches too. A run that the ledger
                holds already is not done again for its adapter
    """
    for method in methods:
        find_method(method)
    if presets:
        search, chosen = iter(()), partial(_preset_runs, settings, tasks, methods, seeds)
    else:
        rates = {method: find_method(method).rates_at(settings.scale, num_rates) for method in methods}
        search = _search_runs(settings, tasks, rates, grid)
        chosen = partial(_chosen_runs, settings, ledger, tasks, rates, seeds, grid)
    jobs = _GlueJobs(data, output, ledger, progress)
    alone = map(jobs.of, itertools.chain(search, chosen()))
    shared = jobs.in_shared_batches(chosen, len(tasks)) if output is not None else ()
    return run_jobs(itertools.chain(alone, shared), ledger, budget=budget, progress=progress)


@dataclass(frozen=True)
class GlueRun:
    """One run.

    preset, grid   its settings are the paper's, or were searched with epochs and batch size
    counts         it goes into a table; a run that only helps to choose a learning rate does not
    """

    settings: EncoderSettings
    task: str
    method: str
    rate: float
    seed: int
    preset: bool = False
    grid: bool = False
    counts: bool = True

    @property
    def setup(self) -> dict[str, Any]:
        return glue_setup(self.settings, self.task, self.method, self.rate, preset=self.preset, grid=self.grid)

    @property
    def folder(self) -> str:
        """The name of its adapter's folder."""
        return f"{self.task}-{self.method}-{self.seed}-{run_key(self.setup, self.seed)[:8]}"


def glue_setup(
    settings: EncoderSettings, task: str, method: str, learning_rate: float, *, preset: bool = False, grid: bool = False
) -> dict[str, Any]:
    """What identifies a run in the ledger, beside its seed."""
    return {
        "experiment": "glue",
        **dataclasses.asdict(settings),
        "task": task,
        "method": method,
        "learning_rate": learning_rate,
        **({"preset": True} if preset else {}),
        **({"grid": True} if grid else {}),
    }


def search_settings(settings: EncoderSettings) -> EncoderSettings:
    """The settings of the runs that choose a learning rate. Without `search_epochs` they are those of all runs."""
    if settings.search_epochs is None:
        return settings
    return dataclasses.replace(settings, epochs=settings.search_epochs, search_epochs=None)


class _GlueJobs:
    """Makes jobs of runs. A task's rows are loaded once for each seed and batch size, on which they depend."""

    def __init__(self, data: Path | None, output: Path | None, ledger: Ledger, progress: Callable[[str], None]):
        self.data, self.output, self.ledger, self.progress = data, output, ledger, progress
        self._loaded: dict[tuple[str, int, int], EncoderData] = {}

    def of(self, run: GlueRun) -> Job:
        label = find_method(run.method).label
        name = f"{run.task}, {label}, {run.rate:g}, {run.settings.epochs} epochs, seed {run.seed}"
        return Job(name, run.setup, run.seed, lambda: _compute(self._rows(run), run, self._folder(run)))

    def in_shared_batches(self, chosen: Callable[[], Iterable[GlueRun]], num_tasks: int) -> Iterator[Job]:
        """A job for each RoAd variant and seed whose runs are all done: its tasks in shared batches."""
        groups: dict[tuple[str, int], dict[GlueRun, float]] = {}  # the runs with their test scores
        for run in chosen():
            if self._folder(run) and (row := self.ledger.find(run.setup, seed=run.seed)):
                groups.setdefault((run.method, run.seed), {})[run] = row["metrics"]["test"]
        for (method, seed), group in groups.items():
            tasks = [run.task for run in group]
            name = f"{', '.join(tasks)} in shared batches, {find_method(method).label}, seed {seed}"
            if lost := [run.task for run in group if not (folder := self._folder(run)) or not folder.is_dir()]:
                self.progress(f"{name}: left out, no adapter of {', '.join(lost)} is in {self.output}")
            elif 1 < len(tasks) == num_tasks:
                settings = dataclasses.asdict(next(iter(group)).settings)
                own = {name: [run.setup[name] for run in group] for name in ("learning_rate", "epochs", "batch_size")}
                own = {name: values if len(set(values)) > 1 else values[0] for name, values in own.items()}
                setup = {"experiment": "glue_together", **settings, "task": tasks, "method": method, **own}
                yield Job(name, setup, seed, partial(self._score_in_shared_batches, group))

    def _score_in_shared_batches(self, runs: Mapping[GlueRun, float]) -> dict[str, Any]:
        adapters = {run.task: (self._rows(run), Adapter.load(self._folder(run) or "")) for run in runs}
        return {"test": score_in_shared_batches(adapters), "apart": {run.task: score for run, score in runs.items()}}

    def _folder(self, run: GlueRun) -> Path | None:
        """Where the run's adapter is kept, if it is."""
        if self.output is None or not run.counts or not run.method.startswith("road"):
            return None
        return self.output / run.folder

    def _rows(self, run: GlueRun) -> EncoderData:
        key = run.task, run.seed, run.settings.batch_size
        if key not in self._loaded:
            self._loaded[key] = EncoderData.load(run.task, run.settings, data=self.data, seed=run.seed)
        return self._loaded[key]


Rates = Mapping[str, Sequence[float]]  # by method


def _search_runs(settings: EncoderSettings, tasks: Sequence[str], rates: Rates, grid: bool) -> Iterator[GlueRun]:
    """Every method and task with its first rate, then its second, so that a small budget gives broad tables first."""
    search = search_settings(settings)
    for values in zip(*rates.values(), strict=True):
        for task, (method, rate) in itertools.product(tasks, zip(rates, values, strict=True)):
            for own in _grid(search, task, grid):
                yield GlueRun(own, task, method, rate, 0, grid=grid, counts=search == settings)


def _grid(settings: EncoderSettings, task: str, grid: bool) -> list[EncoderSettings]:
    """The settings with every number of epochs and batch size of table C.2; without a grid, themselves."""
    if not grid:
        return [settings]
    epochs = (10, 20) if task in FEW_ROWS else (10,)
    return [
        dataclasses.replace(settings, epochs=count, batch_size=size)
        for count, size in itertools.product(epochs, (16, 32))
    ]


def _chosen_runs(
    settings: EncoderSettings, ledger: Ledger, tasks: Sequence[str], rates: Rates, seeds: int, grid: bool
) -> Iterator[GlueRun]:
    """The runs that count: those with the choice that is best on validation, if the whole search is done."""
    search, rows = search_settings(settings), ledger.rows()
    chosen: list[GlueRun] = []
    for task, method in itertools.product(tasks, rates):
        choices = _grid(search, task, grid)
        found = runs_tried(rows, choices, task, method, grid=grid)
        if found.keys() >= set(itertools.product(rates[method], choices)):
            rate, own = max(found, key=lambda choice: validation_rank(found[choice]))
            own = dataclasses.replace(settings, epochs=own.epochs, batch_size=own.batch_size) if grid else settings
            chosen.append(GlueRun(own, task, method, rate, 0, grid=grid))
    for seed in range(seeds):
        yield from (dataclasses.replace(run, seed=seed) for run in chosen)


def runs_tried(
    rows: Sequence[LedgerRow], choices: Sequence[EncoderSettings], task: str, method: str, *, grid: bool = False
) -> dict[tuple[float, EncoderSettings], LedgerRow]:
    """(Learning rate, settings) → its run with the first seed, for every rate that was ever tried with `choices`."""
    found: dict[tuple[float, EncoderSettings], LedgerRow] = {}
    for row, own in itertools.product(rows, choices):
        rate = row["recipe"].get("learning_rate")
        wanted = glue_setup(own, task, method, rate, grid=grid)
        if row["seed"] == 0 and switched_on(row["recipe"]) == switched_on(wanted):
            found[rate, own] = row
    return found


def _preset_runs(
    settings: EncoderSettings, tasks: Sequence[str], methods: Sequence[str], seeds: int
) -> Iterator[GlueRun]:
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
            yield GlueRun(own, task, method, rate, seed, preset=True)


def _compute(data: EncoderData, run: GlueRun, folder: Path | None) -> dict[str, Any]:
    fitted = data.fit(data.fresh(), run.method, run.rate, epochs=run.settings.epochs)
    if folder is not None:
        save_fitted(fitted, data, folder)
    return {
        "metric": data.metric,
        "validation": fitted.validation[data.metric],
        "validation_loss": fitted.validation["loss"],
        "test": data.score(fitted.model, data.test),
        "trainable": fitted.trainable,
        "steps": fitted.steps,
        "train_loss": fitted.train_loss,
    }
