"""`roadkit eval recipes/completion.yaml`: base, tuned and merged model side by side on held-out rows."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path

import typer


def evaluate(
    recipe: Path = typer.Argument(help="The recipe that the adapter was trained with; it needs held-out rows."),
    overrides: list[str] = typer.Argument(None, help="key=value pairs that replace the recipe's."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line."),
) -> None:
    """Compare base, tuned and merged model on the recipe's held-out rows."""
    from rich.console import Console
    from rich.table import Table

    from ..train import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from transformers.utils.logging import disable_progress_bar

    from ..train import compare

    disable_progress_bar()  # of loading weights
    found = compare(loaded)
    table = Table(title=f"{found.adapter}, {found.examples} held-out rows", title_justify="left")
    table.add_column("model")
    for metric in found.rows["base"]:
        table.add_column(metric.replace("_", " "), justify="right")
    for name, values in found.rows.items():
        table.add_row(name, *(f"{value:.4f}" for value in values.values()))
    Console(stderr=json).print(table)
    if json:
        rows = {name: dict(values) for name, values in found.rows.items()}
        print(
            jsonlib.dumps({"task": found.task, "adapter": str(found.adapter), "examples": found.examples, "rows": rows})
        )
