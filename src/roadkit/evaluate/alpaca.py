"""AlpacaEval's files: answers in the form that its judge reads, and the win rate from what the judge wrote.

    write_outputs(Path("outputs.json"), rows, answers, generator="roadkit-road_1")
    # elsewhere, with an API key:  alpaca_eval --model_outputs outputs.json
    win_rate(read_annotations(Path("annotations.json")))

The judge is a model behind an API. Nothing here stands in for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..files import write_json

FIELDS = ("instruction", "output", "generator")


def write_outputs(path: Path, rows: Sequence[Mapping[str, Any]], answers: Sequence[str], *, generator: str) -> None:
    """One object a prompt: instruction, output, generator, and its data set where the row has one."""
    write_json(
        path,
        [
            {key: row[key] for key in ("dataset", "instruction") if key in row} | {"output": answer, "generator": generator}
            for row, answer in zip(rows, answers, strict=True)
        ],
    )  # fmt: skip


def read_outputs(path: Path) -> list[dict[str, Any]]:
    """Raises `RecipeError` naming the first entry that the judge could not read."""
    return _entries(path, FIELDS)


def read_annotations(path: Path) -> list[dict[str, Any]]:
    """The judge's file: `preference` is 1 where the reference won, 2 where the model did, between them for a share."""
    entries = _entries(path, ("instruction", "preference"))
    for number, entry in enumerate(entries):
        preference = entry["preference"]
        if preference is not None and not (isinstance(preference, int | float) and 1 <= preference <= 2):
            raise RecipeError(f"{path}, entry {number}: preference must lie between 1 and 2, got {preference!r}")
    return entries


def win_rate(annotations: Sequence[Mapping[str, Any]]) -> float:
    """Mean share of wins, 0 to 1; entries that the judge left open do not count."""
    shares = [entry["preference"] - 1 for entry in annotations if entry["preference"] is not None]
    if not shares:
        raise RecipeError("the judge decided none of the entries")
    return sum(shares) / len(shares)


def _entries(path: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    if not isinstance(entries, list):
        raise RecipeError(f"{path}: a list of objects is wanted, this is a {type(entries).__name__}")
    for number, entry in enumerate(entries):
        missing = [name for name in fields if not isinstance(entry, dict) or name not in entry]
        if missing:
            raise RecipeError(f"{path}, entry {number} has no {', '.join(missing)}")
    return entries
