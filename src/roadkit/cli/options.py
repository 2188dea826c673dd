"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path

import typer

from ..errors import RoadkitError

DEVICE = typer.Option(None, help="cpu or cuda; by default the GPU where there is one.")


def named_adapters(values: list[str]) -> dict[str, str]:
    """`name=path` → one adapter; a path alone is an adapter (its folder's name) or a folder of adapters."""
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
