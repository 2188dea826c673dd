"""`python -m paper report`: tables and figures, rebuilt from the ledgers. Nothing is run."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path

import typer

from roadkit.errors import RoadkitError

from ..ledger import Ledger
from .options import json_option, ledger_option


def report(
    folders: list[Path] | None = typer.Argument(
        None,
        help="Folders of composition or merging ledgers; by default composition and merging in docs/data and results.",
    ),
    ledger: Path = ledger_option,
    docs: Path = typer.Option(Path("docs"), help="Folder of results.md and of the figures."),
    json: bool = json_option,
) -> None:
    """Rebuild every table and figure from the ledgers; nothing is run."""
    from ..report.results import write_results
    from ..report.study_folder import write_study

    usual = [root / name for root in (docs / "data", Path("results")) for name in ("composition", "merging")]
    studies = [folder / "ledger.jsonl" for folder in folders or usual]
    written = write_results(Ledger(ledger), docs) if ledger.is_file() else []
    written += [file for path in studies if path.is_file() for file in write_study(Ledger(path))]
    if not written:
        raise RoadkitError(f"neither {' nor '.join(map(str, [ledger, *studies]))} is there: run an experiment first")
    names = [str(path) for path in written]
    typer.echo(jsonlib.dumps({"tables": names}) if json else "\n".join(names))
