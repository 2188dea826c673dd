"""The two suites of tasks that one model answers, commonsense and arithmetic: their rows, and how answers are scored.

suite = SUITES["commonsense"]
rows = training_rows(suite, None, scale="small", rows=64, seed=0)
score_suite(suite, {"boolq": questions}, texts)["accuracy"]["boolq"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roadkit.errors import RecipeError
from roadkit.train.data.tables import Cells, Table

from ..data import check_rows, read_rows, sample_rows
from . import arithmetic, commonsense


@dataclass(frozen=True)
class Suite:
    """Tasks that one model answers.

    tasks      that can be scored
    trained    those with training rows
    file_of    the name of a task's rows in `paper.data`
    load       reads a task's rows
    correct    whether a text gives a row's answer
    combined   the name of the paper's training rows, which the full scale reads
    warning    what to know of those
    strict     LoReFT's rule, if the suite has one
    """

    tasks: tuple[str, ...]
    trained: tuple[str, ...]
    file_of: Callable[..., str]
    load: Callable[..., Table]
    correct: Callable[[str, str, str], bool]
    combined: str
    warning: str = ""
    strict: Callable[[str, str], bool] | None = None


SUITES = {
    "commonsense": Suite(
        tuple(commonsense.ANSWERS),
        commonsense.TRAINED,
        commonsense.file_of,
        commonsense.load,
        lambda task, text, answer: commonsense.extract(task, text) == answer,
        "commonsense/commonsense_170k",
        strict=lambda text, answer: commonsense.extract_strict(text) == answer,
    ),
    "arithmetic": Suite(
        arithmetic.TASKS,
        tuple(arithmetic.TRAINED),
        arithmetic.file_of,
        arithmetic.load,
        arithmetic.correct,
        "math/math_10k",
        "math_10k holds rows that MAWPS tests: MAWPS scores say less than they seem to",
    ),
}
Questions = Mapping[str, Sequence[Cells]]  # task → the rows that are asked


def training_rows(suite: Suite, data: Path | None, *, scale: str, rows: int | None, seed: int) -> Table:
    """At full scale the paper's training rows; else the same share of every task that has training rows, in order.

    rows   how many; None: all
    """
    if scale == "full":
        (table,) = read_rows(data, suite.combined)
        return sample_rows(table, rows, seed=seed)
    check_rows(data, *training_names(suite, scale=scale))
    share = None if rows is None else -(-rows // len(suite.trained))
    tables = [sample_rows(suite.load(task, data, train=True), share, seed=seed) for task in suite.trained]
    return _joined(suite, [row for table in tables for row in table.rows][:rows])


def held_out_rows(suite: Suite, data: Path | None, *, rows: int, questions: int) -> tuple[Table, Questions]:
    """Training rows in equal shares of all tasks, and `questions` others of each task to ask.

    At either scale they come from the tasks' own training rows. Raises `RecipeError` if a task has too few.
    """
    check_rows(data, *training_names(suite, scale="small"))
    share = -(-rows // len(suite.trained))
    kept, asked = [], {}
    for task in suite.trained:
        table = sample_rows(suite.load(task, data, train=True), share + questions, seed=0)
        if len(table) <= questions:
            raise RecipeError(f"{table.origin} has {len(table)} rows, {questions} are to be held out: hold out fewer")
        held = sample_rows(table, questions, seed=0)
        asked[task], numbers = held.rows, set(held.numbers)
        kept += [row for row, number in zip(table.rows, table.numbers, strict=True) if number not in numbers]
    return _joined(suite, kept), asked


def training_names(suite: Suite, *, scale: str) -> list[str]:
    """The names in `paper.data` of what `training_rows` reads."""
    return [suite.combined] if scale == "full" else [suite.file_of(task, train=True) for task in suite.trained]


def score_suite(suite: Suite, asked: Questions, texts: Sequence[str]) -> dict[str, Any]:
    """{"accuracy": {task: share}}, by the suite's rules. `texts` answer the rows of all tasks, in order.

    A suite with a strict rule has also `strict` (accuracy of each task by that rule), `answered` (the share of texts with
    an answer word of their own task) and `foreign` (the share with answer words of other tasks only).
    """
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
    if suite.strict:
        found |= {"strict": strict, "answered": answered / len(flat), "foreign": foreign / len(flat)}
    return found


def _joined(suite: Suite, rows: Sequence[Cells]) -> Table:
    return Table(rows, list(range(1, len(rows) + 1)), f"rows of {', '.join(suite.trained)}")
