"""Evaluation rows on disk, found by name, and an error that says where they were looked for."""

from __future__ import annotations

from pathlib import Path

from ..errors import RecipeError
from ..train.data import SUFFIXES, Table, read_table


def find_rows(folder: Path, *names: str) -> Table:
    """The first of `folder`/`names` with any suffix that is read. Raises `RecipeError` naming folder and file."""
    candidates = [folder / f"{name}{suffix}{packed}" for name in names for suffix in SUFFIXES for packed in ("", ".gz")]
    for path in candidates:
        if path.is_file():
            return read_table(str(path))
    raise RecipeError(
        f"there is no {names[0]}{SUFFIXES[0]} in {folder}: --data names another folder; the rows are those of "
        "AGI-Edgerunners/LLM-Adapters (dataset/) and openai/grade-school-math"
    )
