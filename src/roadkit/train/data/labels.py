"""Class labels and scores: which there are, and what a row's cell means.

classes = find_classes(table, "label", recipe)      # ["entailment", "not_entailment"], or a number
read_label(table, 0, "label", classes)              # 1
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...errors import RecipeError, nearest
from ..recipe import Recipe
from .tables import Table

MAX_SPARSE = 100  # labels counted from 0 may leave this many numbers unused before it looks like a mistake


def find_classes(table: Table, column: str, recipe: Recipe) -> list[str] | int | None:
    """The classes of a classification: their names where labels are text, else their number. None for regression.

    The recipe's `labels` or `num_labels` decide; otherwise the training rows do: numbers count from 0 to the largest.
    """
    if recipe.task == "regression":
        return None
    if recipe.labels:
        return list(recipe.labels)
    if recipe.num_labels is not None:
        return recipe.num_labels
    values = [_number_or_text(table.value(i, column)) for i in range(len(table))]
    if any(isinstance(value, str) for value in values):
        return sorted({str(value) for value in values})
    numbers = [value for value in values if isinstance(value, int)]
    largest = max(numbers, default=0)
    if largest >= len(set(numbers)) + MAX_SPARSE:
        index = next(i for i, value in enumerate(values) if value == largest)
        raise RecipeError(
            f"{table.where(index)}, column {column!r}: label {largest} would mean {largest + 1} classes, of which "
            f"{len(set(numbers))} occur; give num_labels if that is meant"
        )
    return max(largest + 1, 2)


def read_label(table: Table, index: int, column: str, classes: Sequence[str] | int | None) -> int | float:
    """A row's class number, or its score where `classes` is None. Raises `RecipeError` naming file, row and column."""
    raw = table.value(index, column)
    where = f"{table.where(index)}, column {column!r}"
    if classes is None:
        return _score(raw, where)
    value = _number_or_text(raw)
    count = classes if isinstance(classes, int) else len(classes)
    if not isinstance(classes, int) and str(value) in classes:
        return list(classes).index(str(value))
    if isinstance(value, int):
        if 0 <= value < count:
            return value
        raise RecipeError(f"{where}: label {value} is outside 0 to {count - 1}")
    if isinstance(value, str) and not isinstance(classes, int):
        raise RecipeError(f"{where}: label {value!r} is none of {', '.join(classes)}{nearest(value, classes)}")
    raise RecipeError(f"{where}: {raw!r} is no label; labels are whole numbers from 0 to {count - 1}")


def _number_or_text(value: Any) -> Any:
    """CSV has text only: a cell that reads as a whole number is one."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip().lstrip("+-").isdecimal():
        return int(value)
    return value


def _score(value: Any, where: str) -> float:
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise RecipeError(f"{where}: {value!r} is no finite number")
    return score
