"""`roadkit train recipes/completion.yaml learning_rate=3e-3`: train one adapter, or show what would be trained."""

from __future__ import annotations

import json as jsonlib
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

    from ..train import load_recipe
    from ..train.progress import clock, console_progress
    from ..train.trainers.processes import is_first_process

    loaded = load_recipe(recipe, overrides or [])
    title = Path(loaded.output).name
    speaks = is_first_process()  # of several that torchrun or accelerate started
    console = Console(stderr=json, quiet=not speaks)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of loading weights; training has one of its own
    if dry_run:
        from ..train import preview

        found = preview(loaded)
        console.print(found)
        facts = vars(found)
    elif many:
        from ..train import run_many

        with console_progress(console, title) as show:
            made = run_many(loaded, progress=show)
        for result in made.adapters.values():
            console.print(f"{result.adapter}: {result.steps} steps, loss {result.metrics['loss']:.4f}", soft_wrap=True)
        for name, problem in made.failed.items():
            console.print(f"[red]{name} failed[/red]: {problem}", soft_wrap=True)
        facts = made.figures()
    else:
        from ..train import run

        with console_progress(console, title) as show:
            result = run(loaded, progress=show)
        values = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
        console.print(f"{result.adapter}: {result.steps} steps in {clock(result.seconds)}, {values}", soft_wrap=True)
        facts = result.figures()
    if json and speaks:
        print(jsonlib.dumps(facts, ensure_ascii=False))
