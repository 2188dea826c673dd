"""`python -m paper composition | merging | glue | … | report`: the paper's experiments; finished runs are kept and never run twice."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import sys
from pathlib import Path

import typer

from roadkit.errors import RoadkitError

from . import experiments

app = typer.Typer(help="Run the paper's experiments; finished runs are kept and never run twice.", no_args_is_help=True)
for command in experiments.COMMANDS:
    app.command()(command)


@app.command()
def composition(
    output: Path = typer.Option(Path("results/composition"), "--output", "-o", help="Folder of the ledger and tables."),
    data: Path = typer.Option(Path("../shared/data"), help="Folder of the small data sets."),
    scale: str = typer.Option(
        "small", help="small (stand-in data) or full (HellaSwag_de and UltraFeedback from a hub)."
    ),
    model: str = typer.Option("smollm2", help="Base model: hub id, folder, or smollm2."),
    rows: int = typer.Option(64, help="Training rows of each task."),
    held_out: int = typer.Option(48, help="Held-out rows of each task."),
    epochs: int = typer.Option(5, help="Passes over the training rows."),
    learning_rate: float = typer.Option(5e-3, help="Of AdamW, falling linearly to zero."),
    seed: int = typer.Option(0, help="Of the rows drawn, their order and LoReFT's start."),
    budget: float | None = typer.Option(
        None, help="Processor minutes; arms that do not fit are left for the next call."
    ),
    json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line."),
) -> None:
    """Tasks in disjoint subspaces, apart and together, beside LoReFT and products of whole adapters (RoAd §4.3)."""
    from roadkit.errors import RoadkitError

    from ..report.report import write
    from ..runs.composition import Settings, run

    if scale not in ("small", "full"):
        raise RoadkitError(f"scale must be 'small' or 'full', got {scale!r}")
    settings = Settings(
        model=model, scale=scale, rows=rows, held_out=held_out, epochs=epochs, learning_rate=learning_rate
    )
    ledger = run(
        settings, output, data=data, seed=seed, budget=budget, progress=lambda line: typer.echo(line, err=json)
    )
    written = write(ledger)
    if json:
        facts = {"ledger": str(ledger.path), "runs": len(ledger.rows()), "settings": dataclasses.asdict(settings)}
        typer.echo(jsonlib.dumps({**facts, "tables": [str(path) for path in written]}))


@app.command()
def merging(
    output: Path = typer.Option(Path("results/merging"), "--output", "-o", help="Folder of the ledger and tables."),
    data: Path = typer.Option(Path("../shared/data"), help="Folder that holds classify/clinc150_*."),
    model: str = typer.Option("minilm", help="Encoder: hub id, folder, or minilm."),
    rows: int = typer.Option(300, help="Training rows of each task."),
    epochs: int = typer.Option(3, help="Passes over the training rows."),
    seed: int = typer.Option(0, help="Of the rows drawn, their order and LoRA's start."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line."),
) -> None:
    """Four tasks' adapters made into one: RoAd's product and mean beside PEFT's merges of LoRAs."""
    from ..report.report import write
    from ..runs.merging import Settings, run

    settings = Settings(model=model, rows=rows, epochs=epochs)
    ledger = run(settings, output, data=data, seed=seed, progress=lambda line: typer.echo(line, err=json))
    written = [str(path) for path in write(ledger)]
    typer.echo(jsonlib.dumps({"ledger": str(ledger.path), "tables": written}) if json else "\n".join(written))


@app.command()
def report(
    output: Path = typer.Argument(Path("results/composition"), help="Folder of the composition experiment's ledger."),
    ledger: Path = experiments.ledger_option,
    docs: Path = typer.Option(Path("docs"), help="Folder of results.md and of the figures."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line."),
) -> None:
    """Rebuild every table and figure from the ledgers; nothing is run."""
    from roadkit.errors import RoadkitError

    from ..ledger import Ledger
    from ..report import report, results

    paths = {output / "ledger.jsonl": report.write, ledger: lambda found: results.write(found, docs)}
    written = [file for path, write in paths.items() if path.is_file() for file in write(Ledger(path))]
    if not written:
        raise RoadkitError(f"neither {' nor '.join(map(str, paths))} is there: run an experiment first")
    typer.echo(jsonlib.dumps({"tables": [str(path) for path in written]}) if json else "\n".join(map(str, written)))


def main() -> None:
    """Run the command line. A user's mistake prints one line and exits with 1."""
    try:
        app()
    except RoadkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
