"""`roadkit plot angles | heatmap | distance | sweep | trajectory`: figures of adapters, with their numbers beside them."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path

import typer

from .options import named_adapters

app = typer.Typer(help="Figures of adapters: PNG, with the numbers as CSV and JSON beside it.", no_args_is_help=True)
_OUTPUT = typer.Option(Path("figures"), "--output", "-o", help="Folder to write to.")
_JSON = typer.Option(False, "--json", help="Print one JSON object.")
_ADAPTERS = typer.Argument(help="name=path, adapters' folders, or folders of adapters.")


@app.command()
def angles(adapters: list[str] = _ADAPTERS, output: Path = _OUTPUT, json: bool = _JSON) -> None:
    """Per layer and module, how the angles and log scales are distributed."""
    from ..analysis import figures, geometry

    _each(adapters, output, json, "angles", lambda adapter, to: figures.draw_angles(geometry.angles(adapter), to))


@app.command()
def heatmap(adapters: list[str] = _ADAPTERS, output: Path = _OUTPUT, json: bool = _JSON) -> None:
    """Layer × module: mean |θ| and mean |ln α|."""
    from ..analysis import figures, geometry

    _each(adapters, output, json, "heatmap", lambda adapter, to: figures.draw_heatmap(geometry.heatmap(adapter), to))


@app.command()
def distance(adapters: list[str] = _ADAPTERS, output: Path = _OUTPUT, json: bool = _JSON) -> None:
    """The distance matrix of adapters, in the order of its clusters."""
    from ..adapter import Adapter
    from ..algebra import distances
    from ..analysis import figures
    from ..errors import RoadkitError

    sources = named_adapters(adapters)
    if len(sources) < 2:
        raise RoadkitError(f"distances need at least two adapters, got {len(sources)}")
    matrix = distances([Adapter.load(path) for path in sources.values()])
    _say(figures.draw_distances(list(sources), matrix, output / "distance"), json)


@app.command()
def sweep(
    adapters: list[str] = _ADAPTERS,
    data: list[str] = typer.Option(
        ..., help="Task data of each adapter, in their order: name=file or file. Repeatable."
    ),
    model: str = typer.Option("smollm2", help="Base model: hub id, folder, or smollm2."),
    rows: int = typer.Option(24, help="Examples of each task."),
    max_length: int = typer.Option(256, help="Tokens of an example at most."),
    output: Path = _OUTPUT,
    json: bool = _JSON,
) -> None:
    """Each adapter's loss on its task's data against its strength, from −1 to 2."""
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
    run: Path = typer.Argument(help="Folder of checkpoint-N folders: <output>.run of a training run."),
    output: Path = _OUTPUT,
    json: bool = _JSON,
) -> None:
    """How the angles grew over a run's checkpoints."""
    from ..analysis import figures, geometry

    rows = geometry.trajectory(geometry.load_checkpoints(run))
    _say(figures.draw_trajectory(rows, output / f"{run.name.removesuffix('.run')}-trajectory"), json)


def _each(adapters: list[str], output: Path, json: bool, kind: str, draw) -> None:
    from ..adapter import Adapter

    written = []
    for name, path in named_adapters(adapters).items():
        written += draw(Adapter.load(path), output / f"{name}-{kind}")
    _say(written, json)


def _say(written: list[Path], json: bool) -> None:
    names = [str(path) for path in written]
    print(jsonlib.dumps({"files": names}) if json else "\n".join(names))
