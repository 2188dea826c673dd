"""`roadkit plot angles | heatmap | distance | sweep | trajectory`: figures of adapters, with their numbers beside them."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .algebra import distances_of
from .options import ADAPTERS, JSON, MODEL, named_adapters

if TYPE_CHECKING:
    from ..adapter import Adapter

app = typer.Typer(
    help="Draw adapters: each figure as PNG, its numbers as CSV and JSON beside it.", no_args_is_help=True
)
OUTPUT = typer.Option(Path("figures"), "--output", "-o", help="Folder to write to.")


@app.command()
def angles(adapters: list[str] = ADAPTERS, output: Path = OUTPUT, json: bool = JSON) -> None:
    """Draw how angles and log scales are distributed, for each layer and kind of module."""
    from ..analysis import figures, geometry

    _each(adapters, output, json, "angles", lambda adapter, to: figures.draw_angles(geometry.angles(adapter), to))


@app.command()
def heatmap(adapters: list[str] = ADAPTERS, output: Path = OUTPUT, json: bool = JSON) -> None:
    """Draw mean |θ| and mean |ln α| as maps of layers and modules."""
    from ..analysis import figures, geometry

    _each(adapters, output, json, "heatmap", lambda adapter, to: figures.draw_heatmap(geometry.heatmap(adapter), to))


@app.command()
def distance(adapters: list[str] = ADAPTERS, output: Path = OUTPUT, json: bool = JSON) -> None:
    """Draw the distances of adapters as a matrix, those that are alike side by side."""
    from ..analysis import figures

    names, matrix = distances_of(adapters)
    _say(figures.draw_distances(names, matrix, output / "distance"), json)


@app.command()
def sweep(
    adapters: list[str] = ADAPTERS,
    data: list[str] = typer.Option(..., help="A data file for each adapter, in their order, or name=file. Repeatable."),
    model: str = MODEL,
    rows: int = typer.Option(24, help="Examples to read of each file."),
    max_length: int = typer.Option(256, help="Tokens of an example at most."),
    output: Path = OUTPUT,
    json: bool = JSON,
) -> None:
    """Draw each adapter's loss on its data against its strength, from −1 to 2.

    Example: roadkit plot sweep formal=adapters/formal --data formal=formal.jsonl
    """
    from .. import models
    from ..adapter import Adapter
    from ..analysis import figures, geometry
    from ..errors import RoadkitError
    from ..intervene.training import encode_rows
    from ..train import Recipe

    sources = named_adapters(adapters)
    tasks: dict[str, str] = {}
    for name, item in zip(sources, data, strict=False):
        label, equals, file = item.partition("=")
        tasks[label if equals else name] = file if equals else item
    if tasks.keys() != sources.keys():
        raise RoadkitError(f"adapters {', '.join(sources)} need one --data each, got it for {', '.join(tasks)}")
    base, tokenizer = models.load_causal(model, device=models.best_device()), models.load_tokenizer(model)
    curves = {}
    for name, path in sources.items():
        recipe = Recipe(model=model, data=tasks[name], output="", max_examples=rows, max_length=max_length)
        curves[name] = geometry.sweep(base, encode_rows(recipe, tokenizer), Adapter.load(path))
    _say(figures.draw_sweep(curves, output / "sweep"), json)


@app.command()
def trajectory(
    run: Path = typer.Argument(help="The folder of a training run's checkpoints, <output>.run."),
    output: Path = OUTPUT,
    json: bool = JSON,
) -> None:
    """Draw how the angles grew over the checkpoints of a training run."""
    from ..analysis import figures, geometry

    rows = geometry.trajectory(geometry.load_checkpoints(run))
    _say(figures.draw_trajectory(rows, output / f"{run.name.removesuffix('.run')}-trajectory"), json)


def _each(
    adapters: list[str], output: Path, json: bool, kind: str, draw: Callable[[Adapter, Path], list[Path]]
) -> None:
    from ..adapter import Adapter

    written = []
    for name, path in named_adapters(adapters).items():
        written += draw(Adapter.load(path), output / f"{name}-{kind}")
    _say(written, json)


def _say(written: list[Path], json: bool) -> None:
    names = [str(path) for path in written]
    print(jsonlib.dumps({"files": names}) if json else "\n".join(names))
