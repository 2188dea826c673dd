"""Arguments and options that several verbs share, and how adapters are named on a command line.

named_adapters(["adapters", "old=adapters/formal"])      # {"brief": "adapters/brief", …, "old": "adapters/formal"}
"""

from __future__ import annotations

from pathlib import Path

import typer

from ..errors import RoadkitError

ADAPTER = typer.Argument(help="An adapter: a folder, a hub id (owner/name), or an address such as s3://bucket/formal.")
ADAPTERS = typer.Argument(help="Adapters: their folders, a folder that holds several, or name=folder.")
NAMED = "An adapter's folder, a folder that holds several, or name=folder. Repeatable."
MODEL = typer.Option("smollm2", help="Base model: a hub id, a folder, or smollm2, which needs no network.")
DEVICE = typer.Option(None, help="cpu or cuda; by default the GPU if there is one.")
OUTPUT = typer.Option(..., "--output", "-o", help="Folder to write to.")
JSON = typer.Option(False, "--json", help="Print one JSON object as the last line.")


def named_adapters(values: list[str]) -> dict[str, str]:
    """What a user gave as adapters → name → path.

    values  `name=path` is one adapter; a path alone is an adapter, called as its folder, or a folder of adapters

    Raises `RoadkitError` for a path that is neither, and for two adapters of one name.
    """
    from ..store import CONFIG

    found: dict[str, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if equals:
            pairs = {name: path}
        elif (Path(value) / CONFIG).is_file():
            pairs = {Path(value).resolve().name: value}
        elif Path(value).is_dir():
            pairs = {child.parent.name: str(child.parent) for child in sorted(Path(value).glob(f"*/{CONFIG}"))}
            if not pairs:
                raise RoadkitError(f"{value}: neither an adapter (no {CONFIG}) nor a folder of adapters")
        else:
            raise RoadkitError(
                f"{value}: no such directory; write name=path, an adapter's folder or a folder of adapters"
            )
        for name, path in pairs.items():
            if name in found and found[name] != path:
                raise RoadkitError(f"two adapters are called {name!r}: {found[name]} and {path}; write name=path")
            found[name] = path
    return found
