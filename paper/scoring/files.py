"""Evaluation rows on disk, found by name, and an error that says where they were looked for."""

from __future__ import annotations

from pathlib import Path

from roadkit.errors import RecipeError
from roadkit.train.data.tables import SUFFIXES, Table, read_table

SOURCES = {  # folder below the data folder → where its files come from
    "commonsense": "AGI-Edgerunners/LLM-Adapters on GitHub (dataset/ and ft-training_set/)",
    "math": "AGI-Edgerunners/LLM-Adapters on GitHub (dataset/ and ft-training_set/) and openai/grade-school-math",
    "instruct": "the hub's tatsu-lab/alpaca_eval (alpaca_eval.json, as alpaca_eval_805) and its sets of instructions",
    "multimodal": "GQA, ScienceQA, TextVQA and POPE, one JSON Lines file each: image, question, answer or answers",
}


def find_rows(folder: Path, *names: str) -> Table:
    """The first of `folder`/`names` with any suffix that is read. Raises `RecipeError` naming folder and file."""
    candidates = [folder / f"{name}{suffix}{packed}" for name in names for suffix in SUFFIXES for packed in ("", ".gz")]
    for path in candidates:
        if path.is_file():
            return read_table(str(path))
    source = SOURCES.get(folder.name)
    told = f"; the rows are those of {source}" if source else ""
    raise RecipeError(
        f"there is no {names[0]}{SUFFIXES[0]} in {folder} (nor with another ending: {', '.join(SUFFIXES[1:])}); "
        f"--data names the folder that holds {folder.name}{told}"
    )
