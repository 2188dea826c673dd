"""`roadkit adapter diff | interpolate | mean | split | conflicts | distance | cluster`: compute with adapters on disk."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..errors import RoadkitError
from .options import ADAPTER, ADAPTERS, JSON, OUTPUT, named_adapters

if TYPE_CHECKING:
    from torch import Tensor

    from ..adapter import Adapter


def diff(
    adapter: str = ADAPTER,
    removed: str = typer.Argument(help="The adapter to take away from it."),
    output: Path = OUTPUT,
    json: bool = JSON,
) -> None:
    """Write the difference of two adapters: what has to come after REMOVED to give ADAPTER."""
    from ..adapter import Adapter
    from ..algebra import difference

    _save(difference(Adapter.load(adapter), Adapter.load(removed)), output, json)


def interpolate(
    first: str = typer.Argument(help="The adapter at share 0."),
    second: str = typer.Argument(help="The adapter at share 1."),
    share: float = typer.Option(0.5, help="How much of the way from the first to the second."),
    output: Path = OUTPUT,
    json: bool = JSON,
) -> None:
    """Write an adapter between two: angles by their shortest arcs, scales geometrically."""
    from ..adapter import Adapter
    from ..algebra import interpolate as between

    _save(between(Adapter.load(first), Adapter.load(second), share), output, json)


def mean(
    adapters: list[str] = ADAPTERS,
    weight: list[float] = typer.Option([], help="One for each adapter, in their order; by default equal. Repeatable."),
    output: Path = OUTPUT,
    json: bool = JSON,
) -> None:
    """Write the weighted geometric mean of adapters.

    Example: roadkit adapter mean adapters/formal adapters/brief --weight 3 --weight 1 -o adapters/mean
    """
    from ..adapter import Adapter
    from ..algebra import mean as geometric_mean

    loaded = [Adapter.load(path) for path in named_adapters(adapters).values()]
    _save(geometric_mean(loaded, weight or None), output, json)


def split(
    adapter: str = ADAPTER,
    by: str = typer.Option("layer", help="layer (each block of the model), module (each kind of layer) or pairs."),
    parts: int = typer.Option(2, help="How many sets of pairs, with --by pairs."),
    output: Path = OUTPUT,
    json: bool = JSON,
) -> None:
    """Cut an adapter into adapters that make it up again, one folder each."""
    from ..adapter import Adapter
    from ..algebra import split as cut

    made = {}
    for name, part in cut(Adapter.load(adapter), by, parts).items():
        part.save(output / name)
        made[name] = str(output / name)
    print(jsonlib.dumps(made) if json else "\n".join(made.values()))


def conflicts(
    first: str = ADAPTER,
    second: str = typer.Argument(help="Another adapter."),
    threshold: float = typer.Option(0.01, help="In radians: pairs that turn by less do not count."),
    json: bool = JSON,
) -> None:
    """Show where two adapters turn the same pairs in opposite directions, layer by layer."""
    from ..adapter import Adapter
    from ..algebra import conflicts as report

    rows = report(Adapter.load(first), Adapter.load(second), threshold=threshold)
    rows.sort(key=lambda row: -row["share"])
    if json:
        print(jsonlib.dumps({"layers": rows}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("layer", "both turn", "opposed", "share of pairs", "cancelled, rad")
    for row in rows[:20]:
        numbers = [str(row["both"]), str(row["opposed"]), f"{row['share']:.3f}", f"{row['cancelled']:.3f}"]
        table.add_row(row["layer"], *numbers)
    Console().print(table)


def distance(adapters: list[str] = ADAPTERS, json: bool = JSON) -> None:
    """Show how far adapters are from each other, in radians a pair (root mean square)."""
    names, matrix = distances_of(adapters)
    if json:
        print(jsonlib.dumps({"names": names, "distances": matrix.tolist()}))
        return
    width = max(map(len, names))
    print(" " * width, *(f"{name[:9]:>9}" for name in names))
    for name, row in zip(names, matrix.tolist(), strict=True):
        print(f"{name:{width}}", *(f"{value:9.4f}" for value in row))


def cluster(adapters: list[str] = ADAPTERS, json: bool = JSON) -> None:
    """Show which adapters are alike: their distances joined by average linkage, nearest first."""
    from ..algebra import cluster as linkage

    names, matrix = distances_of(adapters)
    labels, rows = list(names), []
    for one, other, apart in linkage(matrix):
        rows.append({"joined": [labels[one], labels[other]], "distance": apart})
        labels.append(f"({labels[one]}, {labels[other]})")
    if json:
        print(jsonlib.dumps({"merges": rows}))
    else:
        for row in rows:
            print(f"{row['distance']:.4f}  {' and '.join(row['joined'])}")


def add_to(app: typer.Typer) -> None:
    """Make these verbs commands of `roadkit adapter`."""
    for verb in (diff, interpolate, mean, split, conflicts, distance, cluster):
        app.command()(verb)


def distances_of(adapters: list[str]) -> tuple[list[str], Tensor]:
    """The adapters' names and the matrix of their distances."""
    from ..adapter import Adapter
    from ..algebra import distances

    sources = named_adapters(adapters)
    if len(sources) < 2:
        raise RoadkitError(f"distances need at least two adapters, got {len(sources)}")
    return list(sources), distances([Adapter.load(path) for path in sources.values()])


def _save(result: Adapter, output: Path, json: bool) -> None:
    result.save(output)
    facts = {"output": str(output), "content_hash": result.content_hash}
    print(jsonlib.dumps(facts) if json else f"{output}: {result!r}")
