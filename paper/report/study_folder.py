"""The folder of a composition or merging study: its report, tables and figures, rebuilt from the ledger in it.

write_study(Ledger(Path("results/composition/ledger.jsonl")))      # report.md, answers.csv, losses.png, .csv and .json
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from roadkit.files import write_atomic

from ..ledger import Ledger, LedgerRow
from ..runs.merging import survival
from .changes import draw_changes
from .figures import to_csv


def write_study(ledger: Ledger) -> list[Path]:
    """Write the files beside the ledger; → the files. Of the runs of one setup and seed, the newest counts."""
    rows = ledger.rows()
    folder, files, figures = ledger.path.parent, {}, []
    composition = [row for row in rows if row["recipe"].get("experiment") == "composition"]
    merging = [row for row in rows if row["recipe"].get("experiment") == "merging"]
    report: list[str] = []
    if composition:
        losses = [loss for row in composition for loss in _losses(row)]
        answers = [answer for row in composition for answer in _answers(row)]
        files["answers.csv"] = to_csv(answers)
        figures = draw_changes(losses, folder / "losses")
        report += _composition_report(composition, losses, answers)
    if merging:
        files["accuracy.csv"] = to_csv([cell for row in merging for cell in _accuracies(row)])
        report += _merging_report(merging)
    files = {"report.md": "\n".join(report), **files}
    for name, text in files.items():
        write_atomic(folder / name, text)
    return [*(folder / name for name in files), *figures]


def _losses(row: LedgerRow) -> Iterable[dict[str, Any]]:
    table = row["metrics"]["held_out_loss"]
    for condition, tasks in table.items():
        for task, loss in tasks.items():
            yield {
                "arm": row["recipe"]["arm"]["name"],
                "seed": row["seed"],
                "trainable": row["metrics"]["trainable"],
                "condition": condition,
                "task": task,
                "loss": round(loss, 4),
                "base": round(table["base"][task], 4),
                "change": round(loss - table["base"][task], 4),
            }


def _answers(row: LedgerRow) -> Iterable[dict[str, Any]]:
    for condition, answers in row["metrics"]["answers"].items():
        for answer in answers:
            yield {"arm": row["recipe"]["arm"]["name"], "seed": row["seed"], "condition": condition, **answer}


def _composition_report(
    rows: list[dict[str, Any]], losses: list[dict[str, Any]], answers: list[dict[str, Any]]
) -> list[str]:
    lines = ["# Composition experiment", "", "Rebuilt from `ledger.jsonl` by `python -m paper report`.", ""]
    for row in rows:
        setup, metrics = row["recipe"], row["metrics"]
        arm = setup["arm"]["name"]
        own = [loss for loss in losses if loss["arm"] == arm and loss["seed"] == row["seed"]]
        tasks = list(dict.fromkeys(loss["task"] for loss in own))
        lines += [
            f"## {arm}",
            "",
            f"{setup['model']}, {setup['rows']} rows a task, {setup['epochs']} epochs, seed {row['seed']}; "
            f"{metrics['trainable']} trainable; {row['seconds']:.0f} s of processor time; code {row['code']}.",
            "",
            "| acting | " + " | ".join(f"{task}: loss (change)" for task in tasks) + " | German answers |",
            "|---" * (len(tasks) + 2) + "|",
        ]
        for condition in metrics["held_out_loss"]:
            cells = [loss for loss in own if loss["condition"] == condition]
            given = [
                answer["language"]
                for answer in answers
                if answer["arm"] == arm and answer["seed"] == row["seed"] and answer["condition"] == condition
            ]
            numbers = " | ".join(f"{cell['loss']:.3f} ({cell['change']:+.3f})" for cell in cells)
            lines.append(f"| {condition} | {numbers} | {given.count('de')} of {len(given)} |")
        lines.append("")
    return lines


def _accuracies(row: LedgerRow) -> Iterable[dict[str, Any]]:
    for way, tasks in row["metrics"]["accuracy"].items():
        for task, share in tasks.items():
            yield {
                "kind": row["recipe"]["kind"],
                "seed": row["seed"],
                "way": way,
                "task": task,
                "accuracy": round(share, 4),
            }


def _merging_report(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["# Merging study", "", "Rebuilt from `ledger.jsonl` by `python -m paper report`.", ""]
    for row in rows:
        setup, accuracy = row["recipe"], row["metrics"]["accuracy"]
        lines += [
            f"## {setup['kind']}",
            "",
            f"{setup['model']}, {setup['rows']} rows a task, {setup['epochs']} epochs, seed {row['seed']}; "
            f"{row['seconds']:.0f} s of processor time; code {row['code']}.",
            "",
            "| merged by | " + " | ".join(setup["domains"]) + " | mean | gain kept |",
            "|---" * (len(setup["domains"]) + 3) + "|",
        ]
        for way, tasks in accuracy.items():
            cells = " | ".join(f"{tasks[task]:.3f}" for task in setup["domains"])
            lines.append(
                f"| {way} | {cells} | {sum(tasks.values()) / len(tasks):.3f} | {survival(accuracy, way):.2f} |"
            )
        lines.append("")
    return lines
