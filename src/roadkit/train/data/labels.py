"""Class labels and scores: which there are, and what a row's cell means.

classes = find_classes(table, "label", recipe)      # ["entailment", "not_entailment"], or a number
read_label(table[0], "label", classes)              # 1
"""

from __future__ import annotations

import math
from typing import Any

from ...errors import RecipeError, nearest
from ..recipe import Recipe
from .tables import Row, Table

Classes = list[str] | int | None  # their names or their number; None if a row has a score, or no label at all
MAX_SPARSE = 100  # labels counted from 0 may leave this many numbers unused before it looks like a mistake


def find_classes(table: Table, column: str, recipe: Recipe) -> Classes:
    """The classes of a classification: their names if labels are text, else their number. None for regression.

    The recipe's `labels` or `num_labels` decide. Otherwise the training rows do; numbers then count from 0 to the
    largest. Raises `RecipeError` for a largest number that looks like a mistake.
    """
    if recipe.task == "regression":
        return None
    if recipe.labels:
        return list(recipe.labels)
    if recipe.num_labels is not None:
        return recipe.num_labels
    values = [_number_or_text(row.value(column)) for row in table]
    if any(isinstance(value, str) for value in values):
        return sorted({str(value) for value in values})
    numbers = [value for value in values if isinstance(value, int)]
    largest = max(numbers, default=0)
    if largest >= len(set(numbers)) + MAX_SPARSE:
        row = table[values.index(largest)]
        raise RecipeError(
            f"{row.where_is(column)}: label {largest} would mean {largest + 1} classes, of which "
            f"{len(set(numbers))} occur; give num_labels if that is meant"
        )
    return max(largest + 1, 2)


def read_label(row: Row, column: str, classes: Classes) -> int | float:
    """A row's class number, or its score if `classes` is None. Raises `RecipeError` naming file, row and column."""
    raw = row.value(column)
    where = row.where_is(column)
    if classes is None:
        return _score(raw, where)
    value = _number_or_text(raw)
    count = classes if isinstance(classes, int) else len(classes)
    if not isinstance(classes, int) and str(value) in classes:
        return classes.index(str(value))
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
