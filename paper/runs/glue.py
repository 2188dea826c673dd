"""GLUE (tables 2 and C.1 to C.4): every method with its own learning rate, chosen on validation, scored on test.

    run(Settings(rows=400), Ledger(path), data=Path("../shared/data"), methods=["road_1", "lora"], budget=10)

The first seed tries each learning rate, in shorter runs where `Settings.search_epochs` says so; the best on validation
then runs with every seed. Test scores are in every row, but only those of the chosen rate go into a table.
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

from ..ledger import Ledger, given, run_key
from ..tuning.encoders import EncoderData, Settings
from ..tuning.methods import METHODS, find
from ..tuning.together import keep, score_together
from .jobs import Job, log, run_jobs

SMALL_TASKS = ("mrpc", "stsb", "cola", "sst2", "rte")
FULL_TASKS = (*SMALL_TASKS, "qnli", "qqp", "mnli")
FEW_ROWS = ("rte", "mrpc", "stsb", "cola")
TASKS = {"small": SMALL_TASKS, "full": FULL_TASKS}  # by scale
Preset = tuple[float, int, int]  # learning rate, epochs, batch size


def _presets(*shared: tuple[str, Preset]) -> dict[str, Preset]:
    return {task: preset for tasks, preset in shared for task in tasks.split()}


PRESETS = {  # table C.3: RoAd's best settings of each task
    "roberta-base": _presets((" ".join(FEW_ROWS), (3e-3, 20, 32)), ("sst2 qnli qqp mnli", (1e-3, 10, 16))),
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
    grid: bool = False,
    output: Path | None = None,
    budget: float | None = None,
    progress: Callable[[str], None] = log.info,
) -> int:
    """Do the runs that the ledger lacks; → how many the budget left out.

    data        folder with glue/…, or None for the hub
    num_rates   learning rates a method tries, the same number for all (`Method.rates_at`)
    presets     no search: `PRESETS`, the paper's best settings of RoAd for each task
    grid        each rate is tried with every number of epochs and batch size of table C.2
    output      keep the adapters of RoAd's runs here, and score their tasks in shared batches too (`together`); runs
                that the ledger holds already are not done again for their adapters
    """
    for method in methods:
        find(method)
    if presets:
        search, chosen = iter(()), partial(_preset_runs, settings, tasks, methods, seeds)
    else:
        rates = {method: find(method).rates_at(settings.scale, num_rates) for method in methods}
        search = _search_runs(settings, tasks, rates, grid)
        chosen = partial(_chosen_runs, settings, ledger, tasks, rates, seeds, grid)
    jobs = _Jobs(data, output, ledger, progress)
    alone = map(jobs.of, itertools.chain(search, chosen()))
    together = jobs.together(chosen, len(tasks)) if output is not None else ()
    return run_jobs(itertools.chain(alone, together), ledger, budget=budget, progress=progress)


@dataclass(frozen=True)
class Run:
    """One run; `counts` where it is not only one that helps to choose a learning rate."""

    settings: Settings
    task: str
    method: str
    rate: float
    seed: int
    preset: bool = False
    grid: bool = False
    counts: bool = True

    @property
    def recipe(self) -> dict[str, Any]:
        return recipe_of(self.settings, self.task, self.method, self.rate, preset=self.preset, grid=self.grid)

    @property
    def folder(self) -> str:
        """Of its adapter."""
        return f"{self.task}-{self.method}-{self.seed}-{run_key(self.recipe, self.seed)[:8]}"


def recipe_of(
    settings: Settings, task: str, method: str, learning_rate: float, *, preset: bool = False, grid: bool = False
) -> dict[str, Any]:
    """What identifies a run in the ledger."""
    return {
        "experiment": "glue",
        **dataclasses.asdict(settings),
        "task": task,
        "method": method,
        "learning_rate": learning_rate,
        **({"preset": True} if preset else {}),
        **({"grid": True} if grid else {}),
    }


def searching(settings: Settings) -> Settings:
    """The settings of the runs that choose a learning rate; runs without a search of their own are their own."""
    if settings.search_epochs is None:
        return settings
    return dataclasses.replace(settings, epochs=settings.search_epochs, search_epochs=None)


class _Jobs:
    """Makes jobs; a task's rows are loaded once for each seed and part of the settings that they depend on."""

    def __init__(self, data: Path | None, output: Path | None, ledger: Ledger, progress: Callable[[str], None]):
        self.data, self.output, self.ledger, self.progress = data, output, ledger, progress
        self._loaded: dict[tuple[str, int, int], EncoderData] = {}

    def of(self, run: Run) -> Job:
        name = f"{run.task}, {find(run.method).label}, {run.rate:g}, {run.settings.epochs} epochs, seed {run.seed}"
        return Job(name, run.recipe, run.seed, lambda: _compute(self._rows(run), run, self._folder(run)))

    def together(self, chosen: Callable[[], Iterable[Run]], num_tasks: int) -> Iterator[Job]:
        """For each RoAd variant and seed whose runs are all done: its tasks in shared batches."""
        groups: dict[tuple[str, int], dict[Run, float]] = {}  # the runs with their test scores
        for run in chosen():
            if self._folder(run) and (row := self.ledger.find(run.recipe, seed=run.seed)):
                groups.setdefault((run.method, run.seed), {})[run] = row["metrics"]["test"]
        for (method, seed), group in groups.items():
            tasks = [run.task for run in group]
            name = f"{', '.join(tasks)} in shared batches, {find(method).label}, seed {seed}"
            if lost := [run.task for run in group if not (folder := self._folder(run)) or not folder.is_dir()]:
                self.progress(f"{name}: left out, no adapter of {', '.join(lost)} is in {self.output}")
            elif 1 < len(tasks) == num_tasks:
                settings = dataclasses.asdict(next(iter(group)).settings)
                own = {name: [run.recipe[name] for run in group] for name in ("learning_rate", "epochs", "batch_size")}
                own = {name: values if len(set(values)) > 1 else values[0] for name, values in own.items()}
                recipe = {"experiment": "glue_together", **settings, "task": tasks, "method": method, **own}
                yield Job(name, recipe, seed, partial(self._score_together, group))

    def _score_together(self, runs: Mapping[Run, float]) -> dict[str, Any]:
        adapters = {run.task: (self._rows(run), Adapter.load(self._folder(run) or "")) for run in runs}
        return {"test": score_together(adapters), "apart": {run.task: score for run, score in runs.items()}}

    def _folder(self, run: Run) -> Path | None:
        if self.output is None or not run.counts or not run.method.startswith("road"):
            return None
        return self.output / run.folder

    def _rows(self, run: Run) -> EncoderData:
        key = run.task, run.seed, run.settings.batch_size
        if key not in self._loaded:
            self._loaded[key] = EncoderData.load(run.task, run.settings, data=self.data, seed=run.seed)
        return self._loaded[key]


Rates = Mapping[str, Sequence[float]]  # by method


def _search_runs(settings: Settings, tasks: Sequence[str], rates: Rates, grid: bool) -> Iterator[Run]:
    """Every method and task with its first rate, then its second, so that a small budget gives broad tables first."""
    search = searching(settings)
    for values in zip(*rates.values(), strict=True):
        for task, (method, rate) in itertools.product(tasks, zip(rates, values, strict=True)):
            for own in _grid(search, task, grid):
                yield Run(own, task, method, rate, 0, grid=grid, counts=search == settings)


def _grid(settings: Settings, task: str, grid: bool) -> list[Settings]:
    """Epochs and batch sizes of table C.2, where these are searched."""
    if not grid:
        return [settings]
    epochs = (10, 20) if task in FEW_ROWS else (10,)
    return [
        dataclasses.replace(settings, epochs=count, batch_size=size)
        for count, size in itertools.product(epochs, (16, 32))
    ]


def _chosen_runs(
    settings: Settings, ledger: Ledger, tasks: Sequence[str], rates: Rates, seeds: int, grid: bool
) -> Iterator[Run]:
    """The runs that count: at the setting that is best on validation, where the whole search is done."""
    search, rows = searching(settings), ledger.rows()
    chosen: list[Run] = []
    for task, method in itertools.product(tasks, rates):
        choices = _grid(search, task, grid)
        found = searched(rows, choices, task, method, grid=grid)
        if found.keys() >= set(itertools.product(rates[method], choices)):
            rate, own = max(found, key=lambda choice: rank(found[choice]))
            own = dataclasses.replace(settings, epochs=own.epochs, batch_size=own.batch_size) if grid else settings
            chosen.append(Run(own, task, method, rate, 0, grid=grid))
    for seed in range(seeds):
        yield from (dataclasses.replace(run, seed=seed) for run in chosen)


def searched(
    rows: Sequence[Mapping[str, Any]], choices: Sequence[Settings], task: str, method: str, *, grid: bool = False
) -> dict[tuple[float, Settings], Mapping[str, Any]]:
    """Learning rate and settings → their run, of all that were ever tried."""
    found: dict[tuple[float, Settings], Mapping[str, Any]] = {}
    for row, own in itertools.product(rows, choices):
        rate = row["recipe"].get("learning_rate")
        if row["seed"] == 0 and given(row["recipe"]) == given(recipe_of(own, task, method, rate, grid=grid)):
            found[rate, own] = row
    return found


def _preset_runs(settings: Settings, tasks: Sequence[str], methods: Sequence[str], seeds: int) -> Iterator[Run]:
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
            yield Run(own, task, method, rate, seed, preset=True)


def best(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The row with the best validation score, of equals (a classifier that has learnt nothing yet) the least loss."""
    return max(rows, key=rank)


def rank(row: Mapping[str, Any]) -> tuple[float, float]:
    """By which `best` chooses."""
    return row["metrics"]["validation"], -row["metrics"].get("validation_loss", 0.0)


def _compute(data: EncoderData, run: Run, folder: Path | None) -> dict[str, Any]:
    fitted = data.fit(data.fresh(), run.method, run.rate, epochs=run.settings.epochs)
    if folder is not None:
        keep(fitted, data, folder)
    return {
        "metric": data.metric,
        "validation": fitted.validation[data.metric],
        "validation_loss": fitted.validation["loss"],
        "test": data.score(fitted.model, data.test),
        "trainable": fitted.trainable,
        "steps": fitted.steps,
        "train_loss": fitted.train_loss,
    }
