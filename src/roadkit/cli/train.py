"""`roadkit train recipes/completion.yaml learning_rate=3e-3`: train one adapter, or show what would be trained."""

from __future__ import annotations

import json as jsonlib
import os
from pathlib import Path

import typer


def train(
    recipe: Path = typer.Argument(help="A YAML file; docs/training.md lists its keys."),
    overrides: list[str] = typer.Argument(None, help="key=value pairs that replace the recipe's, as lora.r=8."),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Show rendered rows, lengths, sizes and the time; train nothing."
    ),
    many: bool = typer.Option(
        False, "--many", help="An adapter for every name in the data's column `adapter`, in one run."
    ),
    json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line."),
) -> None:
    """Train an adapter as the recipe says."""
    from rich.console import Console

    from ..train.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    is_first = os.environ.get("RANK", "0") == "0"  # under torchrun and accelerate launch one process speaks
    console = Console(stderr=json, quiet=not is_first)
    from transformers.utils.logging import disable_progress_bar

    from ..train.runs.progress import clock, display

    disable_progress_bar()  # of loading weights; training has one of its own
    if dry_run:
        from ..train.runs.preview import preview

        found = preview(loaded)
        console.print(found)
        facts = vars(found)
    elif many:
        from ..train.runs.many import run_many
        from ..train.runs.session import figures

        with display(console, Path(loaded.output).name) as show:
            made = run_many(loaded, progress=show)
        for result in made.adapters.values():
            console.print(f"{result.adapter}: {result.steps} steps, loss {result.metrics['loss']:.4f}", soft_wrap=True)
        for name, problem in made.failed.items():
            console.print(f"[red]{name} failed[/red]: {problem}", soft_wrap=True)
        facts = vars(made) | {"adapters": {name: figures(result) for name, result in made.adapters.items()}}
    else:
        from ..train.runs.session import figures, run

        with display(console, Path(loaded.output).name) as show:
            result = run(loaded, progress=show)
        values = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
        console.print(f"{result.adapter}: {result.steps} steps in {clock(result.seconds)}, {values}", soft_wrap=True)
        facts = figures(result)
    if json and is_first:
        print(jsonlib.dumps(facts, ensure_ascii=False))
