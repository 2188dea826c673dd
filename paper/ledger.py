"""`Ledger`: one JSON line for every finished run, so that an experiment goes on after a kill and tables need no rerun.

    ledger = Ledger(Path("results/composition/ledger.jsonl"))
    if ledger.find(recipe, seed=0) is None:
        ledger.append(recipe, seed=0, metrics={"loss": 1.2}, seconds=61.5)

A run is what its recipe and seed say; the code's version and the machine are kept beside the metrics. A line that a kill
left unfinished counts for nothing and is cut off before the next one is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from roadkit import __version__
from roadkit.errors import RecipeError

FIELDS = {"key", "recipe", "seed", "code", "machine", "metrics", "seconds", "finished"}


class Ledger:
    """The rows of one file, in the order in which their runs finished. Several processes may append."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.code = code_version()  # of what runs, whatever is committed meanwhile
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))

    def rows(self) -> list[dict[str, Any]]:
        """Every finished run, of one that was done again the last. Raises `RecipeError` naming a line that is no row, the
        last unfinished one excepted."""
        if not self.path.exists():
            return []
        *lines, _ = self.path.read_bytes().split(b"\n")  # what follows the last line end is unfinished, or empty
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise RecipeError(f"{self.path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict) or row.keys() != FIELDS:
                code = row.get("code") if isinstance(row, dict) else None
                told = f" (written by roadkit {code}, this is {self.code})" if code else ""
                raise RecipeError(
                    f"{self.path}, line {number} is no run of this version{told}: its fields must be "
                    f"{', '.join(sorted(FIELDS))}; --ledger names another file"
                )
            rows.append(row | {"key": run_key(row["recipe"], row["seed"])})
        return list({row["key"]: row for row in rows}.values())

    def find(self, recipe: Mapping[str, Any], *, seed: int) -> dict[str, Any] | None:
        """The newest run of this recipe and seed."""
        key = run_key(recipe, seed)
        return next((row for row in self.rows() if row["key"] == key), None)

    def append(
        self, recipe: Mapping[str, Any], *, seed: int, metrics: Mapping[str, Any], seconds: float
    ) -> dict[str, Any]:
        """Add a finished run; it is on disk when this returns."""
        row = {
            "key": run_key(recipe, seed),
            "recipe": dict(recipe),
            "seed": seed,
            "code": self.code,
            "machine": machine(),
            "metrics": dict(metrics),
            "seconds": round(seconds, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        with self._lock, open(self.path, "ab+") as file:
            file.seek(0)
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        return row


def run_key(recipe: Mapping[str, Any], seed: int) -> str:
    """16 hexadecimal digits that name what a recipe sets and a seed, whatever the order of the recipe's keys."""
    text = json.dumps([given(recipe), seed], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def given(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A setting that is None or False is as one that a row from before it lacks."""
    return {name: value for name, value in recipe.items() if value is not None and value is not False}


def code_version() -> str:
    """roadkit's version, and in a checkout the commit, with a + where files differ from it."""
    folder = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__} {described.stdout.strip()}"


def machine() -> dict[str, Any]:
    """What a run ran on, without the machine's name."""
    import torch

    return {
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "architecture": platform.machine(),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
