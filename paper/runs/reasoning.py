"""Commonsense (tables 3, C.5, C.6, D.2) and arithmetic (tables 4, C.7): one model answers all tasks of a suite.

    run_suite("commonsense", DecoderSettings(rows=64), Ledger(path), data=None, methods=["base", "road_1"])

Every method runs with its learning rate of the literature (`rate_of`). With a `RateSearch` it tries a few around that one in
short runs, and takes the rate whose run answers most of the training rows that it was not shown.
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

from ..data import check_rows, sample_rows
from ..ledger import Ledger, best_row
from ..scoring.suites import SUITES, Questions, Suite, held_out_rows, score_suite, training_names, training_rows
from ..tuning.decoders import BASE, DECODER_SCALES, DecoderSettings, TunedDecoder, decoder_label, rate_of
from ..tuning.loreft import LOREFT_REASONING
from .jobs import Job, log, run_jobs

SUITE_METHODS = (BASE, "road_1", "lora", "road_2")
SUITE_SCALES = {  # suite → scale → what its runs share (table C.5)
    "commonsense": DECODER_SCALES,
    "arithmetic": {
        "small": dataclasses.replace(DECODER_SCALES["small"], new_tokens=128),
        "full": dataclasses.replace(DECODER_SCALES["full"], new_tokens=128, epochs=12),
    },
}
SEARCH = "_search"  # ends the name of the experiment in the ledger
TRIED = (1, 1 / 3, 3, 1 / 9)  # the learning rates of a search, as multiples of a method's own


@dataclass(frozen=True)
class RateSearch:
    """Runs that choose the learning rates.

    rates      how many every method tries
    rows       training rows of a run
    held_out   questions of each task, taken from its training rows and not trained on
    """

    rates: int = 3
    rows: int = 500
    held_out: int = 75

    def tried(self, method: str) -> tuple[float, ...]:
        """The learning rates that a method tries."""
        return tuple(float(f"{rate_of(method) * factor:.2g}") for factor in TRIED[: self.rates])

    def setup(self, suite: str, settings: DecoderSettings, method: str, learning_rate: float) -> dict[str, Any]:
        """What identifies one of its runs in the ledger, beside the seed 0."""
        return suite_setup(suite + SEARCH, self.shorter(settings), SUITES[suite].trained, method, learning_rate)

    def shorter(self, settings: DecoderSettings) -> DecoderSettings:
        """The settings of its runs."""
        return dataclasses.replace(settings, rows=self.rows, questions=self.held_out)


def run_suite(
    suite: str,
    settings: DecoderSettings,
    ledger: Ledger,
    *,
    data: Path | None,
    methods: Sequence[str] = SUITE_METHODS,
    tasks: Sequence[str] = (),
    learning_rate: float | None = None,
    search: RateSearch | None = None,
    seeds: Iterable[int] = (0,),
    every_epoch: bool = False,
    budget: float | None = None,
    progress: Callable[[str], None] = log.info,
) -> int:
    """Do the runs that the ledger lacks; → how many the budget left out.

    data            the folder of `read_rows`
    tasks           to score; none: all of the suite
    learning_rate   of every method but the base, instead of its own (`rate_of`)
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
    runs = _SuiteRuns(suite, settings, data, tasks)

    def jobs() -> Iterator[Job]:
        if search:
            yield from runs.search_jobs(search, methods)
        chosen = runs.chosen_rates(search, ledger, rates) if search else rates
        for seed in seeds:
            yield from runs.jobs(chosen, seed, every_epoch)

    return run_jobs(jobs(), ledger, budget=budget, progress=progress)


@dataclass(frozen=True)
class _SuiteRuns:
    """What all runs of a suite share, and the jobs made of it. `tasks` are scored."""

    name: str
    settings: DecoderSettings
    data: Path | None
    tasks: Sequence[str]

    @property
    def suite(self) -> Suite:
        return SUITES[self.name]

    def search_jobs(self, search: RateSearch, methods: Sequence[str]) -> Iterator[Job]:
        """Every method with its first rate, then its second."""
        for i in range(search.rates):
            for method in methods:
                if method != BASE:
                    rate = search.tried(method)[i]
                    label = f"{decoder_label(method)}, {rate:g}, {search.rows} rows to choose a learning rate"
                    setup = search.setup(self.name, self.settings, method, rate)
                    yield Job(f"{self.name}, {label}", setup, 0, partial(self.compute_search, search, method, rate))

    def chosen_rates(self, search: RateSearch, ledger: Ledger, rates: Mapping[str, float]) -> dict[str, float]:
        """Method → the best rate of its search, if that is done. The base has no search and keeps its own of `rates`."""
        chosen = {}
        for method, rate in rates.items():
            if method == BASE:
                chosen[method] = rate
                continue
            setups = [search.setup(self.name, self.settings, method, tried) for tried in search.tried(method)]
            found = [row for setup in setups if (row := ledger.find(setup, seed=0))]
            if len(found) == len(setups):
                chosen[method] = best_row(found)["recipe"]["learning_rate"]
        return chosen

    def jobs(self, rates: Mapping[str, float], seed: int, every_epoch: bool) -> Iterator[Job]:
        """Every method with its rate."""
        for method, rate in rates.items():
            setup = suite_setup(self.name, self.settings, self.tasks, method, rate)
            setup |= {"every_epoch": True} if every_epoch else {}
            compute = partial(self.compute, method, rate, seed, every_epoch)
            yield Job(f"{self.name}, {decoder_label(method)}, {rate:g}, seed {seed}", setup, seed, compute)

    def compute(self, method: str, rate: float, seed: int, every_epoch: bool) -> dict[str, Any]:
        suite, settings = self.suite, self.settings
        names = training_names(suite, scale=settings.scale)
        check_rows(self.data, *names, *(suite.file_of(task, train=False) for task in self.tasks))
        rows = training_rows(suite, self.data, scale=settings.scale, rows=settings.rows, seed=seed)
        asked = {
            task: sample_rows(suite.load(task, self.data, train=False), settings.questions, seed=0).rows
            for task in self.tasks
        }
        options: dict[str, Any] = {"seed": seed, "every_epoch": every_epoch, "edits": LOREFT_REASONING}
        tuned = TunedDecoder.train(settings, method, rate, rows, **options)
        epochs = [self.scores(asked, tuned, epoch) for epoch in range(len(tuned.epochs))]
        found = max(epochs, key=lambda scores: statistics.fmean(scores["accuracy"].values()))
        found |= {"questions": {task: len(rows) for task, rows in asked.items()}, **tuned.facts}
        return found | ({"epochs": [scores["accuracy"] for scores in epochs]} if every_epoch else {})

    def compute_search(self, search: RateSearch, method: str, rate: float) -> dict[str, Any]:
        rows, asked = held_out_rows(self.suite, self.data, rows=search.rows, questions=search.held_out)
        tuned = TunedDecoder.train(search.shorter(self.settings), method, rate, rows, seed=0, edits=LOREFT_REASONING)
        found = self.scores(asked, tuned)
        return found | {"validation": statistics.fmean(found["accuracy"].values()), **tuned.facts}

    def scores(self, asked: Questions, tuned: TunedDecoder, epoch: int = -1) -> dict[str, Any]:
        """Of what the model as it was after an epoch answers."""
        instructions = [row["instruction"] for rows in asked.values() for row in rows]
        texts = tuned.answer(instructions, new_tokens=self.settings.new_tokens, epoch=epoch)
        return score_suite(self.suite, asked, texts)


def suite_setup(
    experiment: str, settings: DecoderSettings, tasks: Sequence[str], method: str, learning_rate: float
) -> dict[str, Any]:
    """What identifies a run in the ledger, beside its seed."""
    return {
        "experiment": experiment,
        **dataclasses.asdict(settings),
        "tasks": list(tasks),
        "method": method,
        "learning_rate": learning_rate,
    }
