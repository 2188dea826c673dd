"""`roadkit adapter diff | interpolate | mean | split | conflicts | distance | cluster`: compute with adapters on disk."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path

import typer

from .options import named_adapters

_JSON = typer.Option(False, "--json", help="Print one JSON object.")
_OUTPUT = typer.Option(..., "--output", "-o", help="Folder to write.")
_ADAPTERS = typer.Argument(help="name=path, adapters' folders, or folders of adapters.")


def diff(
    adapter: str = typer.Argument(help="Adapter folder, hub id or address."),
    removed: str = typer.Argument(help="The adapter to take away from its beginning."),
    output: Path = _OUTPUT,
    json: bool = _JSON,
) -> None:
    """Write what has to come after REMOVED to give ADAPTER."""
    from ..adapter import Adapter
    from ..algebra import difference

    _save(difference(Adapter.load(adapter), Adapter.load(removed)), output, json)


def interpolate(
    first: str = typer.Argument(help="Where the way begins."),
    second: str = typer.Argument(help="Where it ends."),
    share: float = typer.Option(0.5, help="How much of the way: 0 is the first, 1 the second."),
    output: Path = _OUTPUT,
    json: bool = _JSON,
) -> None:
    """Write an adapter on the way from one to another (road_1: shortest arcs, geometric scales)."""
    from ..adapter import Adapter
    from ..algebra import interpolate as between

    _save(between(Adapter.load(first), Adapter.load(second), share), output, json)


def mean(
    adapters: list[str] = _ADAPTERS,
    weight: list[float] = typer.Option([], help="One for each adapter, in their order. Repeatable."),
    output: Path = _OUTPUT,
    json: bool = _JSON,
) -> None:
    """Write the weighted geometric mean of adapters."""
    from ..adapter import Adapter
    from ..algebra import mean as geometric_mean

    loaded = [Adapter.load(path) for path in named_adapters(adapters).values()]
    _save(geometric_mean(loaded, weight or None), output, json)


def split(
    adapter: str = typer.Argument(help="Adapter folder, hub id or address."),
    by: str = typer.Option("layer", help="layer, module or pairs."),
    parts: int = typer.Option(2, help="How many sets of pairs, with --by pairs."),
    output: Path = _OUTPUT,
    json: bool = _JSON,
) -> None:
    """Cut an adapter into adapters, one folder each, that make it up again."""
    from ..adapter import Adapter
    from ..algebra import split as cut

    made = {}
    for name, part in cut(Adapter.load(adapter), by, parts).items():
        part.save(output / name)
        made[name] = str(output / name)
    print(jsonlib.dumps(made) if json else "\n".join(made.values()))


def conflicts(
    first: str = typer.Argument(help="Adapter folder, hub id or address."),
    second: str = typer.Argument(help="Another."),
    threshold: float = typer.Option(0.01, help="Radians; pairs that turn by less do not count."),
    json: bool = _JSON,
) -> None:
    """Where two adapters turn the same pairs in opposite directions, layer by layer."""
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


def distance(adapters: list[str] = _ADAPTERS, json: bool = _JSON) -> None:
    """How far adapters are from each other: radians a pair, root mean square."""
    names, matrix = _distances(adapters)
    if json:
        print(jsonlib.dumps({"names": names, "distances": matrix.tolist()}))
        return
    width = max(map(len, names))
    print(" " * width, *(f"{name[:9]:>9}" for name in names))
    for name, row in zip(names, matrix.tolist(), strict=True):
        print(f"{name:{width}}", *(f"{value:9.4f}" for value in row))


def cluster(adapters: list[str] = _ADAPTERS, json: bool = _JSON) -> None:
    """Which adapters are alike: average linkage on their distances, nearest first."""
    from ..algebra import cluster as linkage

    names, matrix = _distances(adapters)
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


def _distances(adapters: list[str]):
    from ..adapter import Adapter
    from ..algebra import distances
    from ..errors import RoadkitError

    sources = named_adapters(adapters)
    if len(sources) < 2:
        raise RoadkitError(f"distances need at least two adapters, got {len(sources)}")
    return list(sources), distances([Adapter.load(path) for path in sources.values()])


def _save(result, output: Path, json: bool) -> None:
    result.save(output)
    facts = {"output": str(output), "content_hash": result.content_hash}
    print(jsonlib.dumps(facts) if json else f"{output}: {result!r}")
