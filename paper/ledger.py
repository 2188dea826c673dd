"""`Ledger`: one JSON line for every finished run, so that an experiment goes on after a kill and tables need no rerun.

    ledger = Ledger(Path("results/composition/ledger.jsonl"))
    if ledger.find(setup, seed=0) is None:
        ledger.append(setup, seed=0, metrics={"loss": 1.2}, seconds=61.5)

A run is identified by its setup (everything that was chosen for it: experiment, model, rows, method, …) and its seed. The
file calls the setup `recipe`. The code's version and the machine are kept beside the metrics. A line that a kill left
unfinished counts for nothing and is cut off before the next one is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from roadkit import __version__
from roadkit.errors import RecipeError

FIELDS = {"key", "recipe", "seed", "code", "machine", "metrics", "seconds", "finished"}
LedgerRow = Mapping[str, Any]  # with FIELDS


class Ledger:
    """The rows of one file, in the order in which their runs finished. Several processes may append."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.code = code_version()  # of the code that runs, even if another commit is made meanwhile
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))

    def rows(self) -> list[dict[str, Any]]:
        """Every finished run. If a run was done again, its last row counts.

        Raises `RecipeError` naming a line that is no row. An unfinished last line is passed over.
        """
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

    def find(self, setup: Mapping[str, Any], *, seed: int) -> dict[str, Any] | None:
        """The newest run of this setup and seed."""
        key = run_key(setup, seed)
        return next((row for row in self.rows() if row["key"] == key), None)

    def append(
        self, setup: Mapping[str, Any], *, seed: int, metrics: Mapping[str, Any], seconds: float
    ) -> dict[str, Any]:
        """Add a finished run; it is on disk when this returns."""
        row = {
            "key": run_key(setup, seed),
            "recipe": dict(setup),
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


def run_key(setup: Mapping[str, Any], seed: int) -> str:
    """16 hexadecimal digits that identify a setup and a seed, whatever the order of the setup's keys."""
    text = json.dumps([switched_on(setup), seed], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def switched_on(setup: Mapping[str, Any]) -> dict[str, Any]:
    """The setup without settings that are None or False.

    So a setting that is added later, and switched off, leaves the key of older runs as it was.
    """
    return {name: value for name, value in setup.items() if value is not None and value is not False}


def best_row(rows: Iterable[LedgerRow]) -> LedgerRow:
    """The run with the best validation score; of equals the one with the least loss."""
    return max(rows, key=validation_rank)


def validation_rank(row: LedgerRow) -> tuple[float, float]:
    """What `best_row` compares. Classifiers that have learnt nothing yet have equal scores, but not equal losses."""
    return row["metrics"]["validation"], -row["metrics"].get("validation_loss", 0.0)


def code_version() -> str:
    """roadkit's version; in a checkout the commit too, with a + if files differ from it."""
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
    """The processor and the versions that a run ran on, without the machine's name."""
    import torch

    return {
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "architecture": platform.machine(),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
