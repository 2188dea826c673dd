"""`python -m paper composition` and `merging`: several tasks in one intervention, several adapters made into one.

Each keeps a ledger of its own in its output folder, with its report beside it.
"""

from __future__ import annotations

import dataclasses
import json as jsonlib
from pathlib import Path

import typer

from .options import budget_option, check_scale, data_option, json_option, progress_to


def composition(
    output: Path = typer.Option(Path("results/composition"), "--output", "-o", help="Folder of the ledger and tables."),
    data: Path | None = data_option,
    scale: str = typer.Option(
        "small", help="small (stand-in data) or full (HellaSwag_de and UltraFeedback from the hub)."
    ),
    model: str = typer.Option("smollm2", help="Base model: hub id, folder, or smollm2."),
    rows: int = typer.Option(64, help="Training rows of each task."),
    held_out: int = typer.Option(48, help="Held-out rows of each task."),
    epochs: int = typer.Option(5, help="Passes over the training rows."),
    learning_rate: float = typer.Option(5e-3, help="Of AdamW, falling linearly to zero."),
    seed: int = typer.Option(0, help="Of the rows drawn, their order and LoReFT's start."),
    budget: float | None = budget_option,
    json: bool = json_option,
) -> None:
    """Tasks in disjoint subspaces, apart and together, beside LoReFT and products of whole adapters (RoAd §4.3)."""
    from ..report.study_folder import write_study
    from ..runs.composition import CompositionSettings, run_composition

    check_scale(scale)
    settings = CompositionSettings(
        model=model, scale=scale, rows=rows, held_out=held_out, epochs=epochs, learning_rate=learning_rate
    )
    ledger = run_composition(settings, output, data=data, seed=seed, budget=budget, progress=progress_to(json))
    written = write_study(ledger)
    if json:
        facts = {"ledger": str(ledger.path), "runs": len(ledger.rows()), "settings": dataclasses.asdict(settings)}
        typer.echo(jsonlib.dumps({**facts, "tables": [str(path) for path in written]}))


def merging(
    output: Path = typer.Option(Path("results/merging"), "--output", "-o", help="Folder of the ledger and tables."),
    data: Path | None = data_option,
    model: str = typer.Option("minilm", help="Encoder: hub id, folder, or minilm."),
    rows: int = typer.Option(300, help="Training rows of each task."),
    epochs: int = typer.Option(3, help="Passes over the training rows."),
    seed: int = typer.Option(0, help="Of the rows drawn, their order and LoRA's start."),
    json: bool = json_option,
) -> None:
    """Four tasks' adapters made into one: RoAd's product and mean beside PEFT's merges of LoRAs."""
    from ..report.study_folder import write_study
    from ..runs.merging import MergingSettings, run_merging

    settings = MergingSettings(model=model, rows=rows, epochs=epochs)
    ledger = run_merging(settings, output, data=data, seed=seed, progress=progress_to(json))
    written = [str(path) for path in write_study(ledger)]
    typer.echo(jsonlib.dumps({"ledger": str(ledger.path), "tables": written}) if json else "\n".join(written))
