"""The directory that a run writes: its files by name, in one step, over nothing that is not its own.

check_output("adapters/json", recipe)                              # before the run
write_files("adapters/json", {"adapter_config.json": b"…", …})     # after it
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...errors import RecipeError
from ...files import replaced_directory
from ...store import BESIDE, FILES
from ..recipe import Recipe

ROAD, LORA = "road", "lora"  # folders of an output that holds two adapters
CARD, FIGURES = BESIDE
OWN = (*FILES, *BESIDE)  # an adapter's files


def check_output(path: str | Path, recipe: Recipe) -> None:
    """Before a run: may its adapter go to `path`? Raises `RecipeError` for a file, and for a folder of other things."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise RecipeError(f"output {path} is a file; an adapter is written as a directory")
    folders = (ROAD, LORA) if recipe.lora else ()
    found = list(path.iterdir()) if path.is_dir() else []
    others = sorted(
        item.name + "/" * item.is_dir() for item in found if item.name not in (folders if item.is_dir() else OWN)
    )
    if others:
        raise RecipeError(f"output {path} holds other things ({', '.join(others[:3])}); name a new folder")


def write_files(path: str | Path, files: Mapping[str, bytes]) -> None:
    """Write a directory in one step. A crash leaves what was there before, and so does a full disk: `RecipeError`."""
    try:
        with replaced_directory(path, stale=OWN) as folder:
            _write(folder, files)
    except OSError as error:
        raise RecipeError(f"{path} cannot be written: {error}; what was there before is untouched") from error


def write_into(path: str | Path, files: Mapping[str, bytes]) -> None:
    """Write files into a checkpoint, beside the trainer's; it counts as complete only when it is marked."""
    Path(path).mkdir(parents=True, exist_ok=True)
    _write(Path(path), files)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
