"""What the commands share: their options, and how they read them and report.

settings = changed_scale(ENCODER_SCALES, scale, model=model, rows=rows)
run_glue(settings, Ledger(ledger), data=data, tasks=split_list(tasks, SMALL_TASKS), progress=progress_to(json))
"""

from __future__ import annotations

import dataclasses
import json as jsonlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

from roadkit.errors import RoadkitError

from ..ledger import Ledger

LEDGER = Path("docs/data/experiments.jsonl")
SEEDS = {"small": 1, "full": 3}  # as many as the paper has at full scale
ledger_option = typer.Option(LEDGER, "--ledger", "-l", help="Finished runs; those in it are not run again.")
data_option = typer.Option(
    None, "--data", help="Folder of the data sets; without it they come from paper-data in roadkit's cache, or the hub."
)
scale_option = typer.Option("small", help="small (the bundled models), or full (the paper's model and settings).")
model_option = typer.Option(None, help="Base model instead of the scale's: hub id, folder, minilm or smollm2.")
methods_option = typer.Option("", help="Methods, separated by commas; empty: all of the experiment.")
tasks_option = typer.Option("", help="Tasks, separated by commas; empty: all of the experiment.")
rows_option = typer.Option(None, help="Training rows instead of the scale's.")
epochs_option = typer.Option(None, help="Epochs instead of the scale's.")
validation_option = typer.Option(None, help="Validation rows instead of the scale's.")
test_option = typer.Option(None, help="Test rows instead of the scale's.")
questions_option = typer.Option(None, help="Questions of each task instead of the scale's.")
new_tokens_option = typer.Option(None, help="Tokens an answer at most, instead of the scale's.")
bf16_option = typer.Option(
    None, "--bf16/--no-bf16", help="16-bit arithmetic in training and scoring, instead of the scale's."
)
seed_option = typer.Option(0, help="Of the rows drawn, their order and new weights.")
budget_option = typer.Option(None, help="Processor minutes; runs that do not fit are left for the next call.")
json_option = typer.Option(False, "--json", help="Print one JSON object as the last line.")


def changed_scale(scales: Mapping[str, Any], scale: str, **changes: Any) -> Any:
    """A scale's settings with the changes that are not None. Raises `RoadkitError` for an unknown scale."""
    check_scale(scale)
    return dataclasses.replace(scales[scale], **{name: value for name, value in changes.items() if value is not None})


def check_scale(scale: str) -> None:
    """Raises `RoadkitError` for an unknown scale."""
    if scale not in SEEDS:
        raise RoadkitError(f"scale must be 'small' or 'full', got {scale!r}")


def split_list(text: str, default: Iterable[str]) -> tuple[str, ...]:
    """ "rte, mrpc" → ("rte", "mrpc"); an empty text → the default."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) or tuple(default)


def progress_to(json: bool) -> Callable[[str], None]:
    """Prints progress line by line, on stderr if the last line of stdout is to be JSON; transformers' bars are switched off."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return lambda line: typer.echo(line, err=json)


def report_runs(ledger: Ledger, left: int, json: bool) -> None:
    """With --json: the ledger, its number of runs, and how many were left out."""
    if json:
        typer.echo(jsonlib.dumps({"ledger": str(ledger.path), "runs": len(ledger.rows()), "left": left}))
