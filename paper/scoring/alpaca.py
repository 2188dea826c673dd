"""AlpacaEval's files: answers in the form that its judge reads, and the win rate from what the judge wrote.

    write_outputs(Path("outputs.json"), rows, answers, generator="roadkit-road_1")
    # elsewhere, with an API key:  alpaca_eval --model_outputs outputs.json
    win_rate(read_annotations(Path("annotations.json")))

The judge is a model behind an API. Nothing here takes its place.

Source: tatsu-lab/alpaca_eval, results/*/model_outputs.json for the form of answers, src/alpaca_eval/metrics/winrate.py
and helpers.py for the win rate, which is the leaderboard's `win_rate` divided by 100. AlpacaEval 2.0 sorts by a
length-controlled win rate, which is not computed here. (Its files may lack `generator`; it then says "Current model".)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roadkit.errors import RecipeError
from roadkit.files import write_json

FIELDS = ("instruction", "output", "generator")


def write_outputs(path: Path, rows: Sequence[Mapping[str, Any]], answers: Sequence[str], *, generator: str) -> None:
    """One object a prompt: instruction, output, generator, and the prompt's data set if its row names one."""
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
    """The judge's file. `preference` is 1 if the reference won, 2 if the model did, and between them for a share.

    In older files 0 is a draw. null and NaN are undecided. Any other number raises `RecipeError`; alpaca_eval drops it.
    """
    entries = _entries(path, ("instruction", "preference"))
    for number, entry in enumerate(entries):
        preference = entry["preference"]
        if _undecided(preference):
            continue
        if not (isinstance(preference, int | float) and (preference == 0 or 1 <= preference <= 2)):
            raise RecipeError(f"{path}, entry {number}: preference must lie between 1 and 2, got {preference!r}")
    return entries


def win_rate(annotations: Sequence[Mapping[str, Any]]) -> float:
    """Mean share of wins, 0 to 1. A draw is half a win. Entries that the judge left undecided do not count."""
    preferences = [entry["preference"] for entry in annotations if not _undecided(entry["preference"])]
    if not preferences:
        raise RecipeError("the judge decided none of the entries")
    return sum((preference or 1.5) - 1 for preference in preferences) / len(preferences)


def _undecided(preference: Any) -> bool:
    return preference is None or (isinstance(preference, float) and math.isnan(preference))


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
