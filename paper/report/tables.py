"""Ledger rows as Markdown tables. Every table says at which scale its numbers were made.

result_tables(ledger.rows())["glue"]      # Markdown, with the scale in words above each table
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..ledger import LedgerRow
from ..runs.reasoning import SEARCH
from ..scoring.suites import SUITES
from .benchmarks import benchmark_tables
from .glue_tables import families_table, methods_table, shared_batches_table
from .markdown import markdown_table, percent, spread, titled
from .quoted import quoted_experiments, quoted_table
from .scores import COMPARED, SUITE_RUN, grouped, size_of, suite_choices, suite_groups
from .summary import summary_lines
from .wording import group_scale, label_of, machine_of

CHOSEN = "†"  # marks the learning rate that a search chose
RULES: dict[str, Callable[[Mapping[str, Any]], float]] = {  # further columns of suites whose answers are words
    "with an answer word": lambda metrics: metrics["answered"],
    "mean by LoReFT's rule": lambda metrics: statistics.fmean(metrics["strict"].values()),
}


def result_tables(rows: Sequence[LedgerRow]) -> dict[str, str]:
    """Experiment → its tables; paper_EXPERIMENT → the paper's table; "summary" → the paper's averages beside ours.

    If an experiment has no finished runs, its text says so.
    """
    found = {name: "\n".join(make(_rows_of(rows, name)) or ["No finished run yet."]) for name, make in TABLES.items()}
    quoted = {f"paper_{name}": "\n".join(quoted_table(name)) for name in quoted_experiments()}
    return found | quoted | {"summary": "\n".join(summary_lines(rows))}


def _method(row: LedgerRow) -> str:
    return label_of(str(row["recipe"]["method"]))


def _pilot1(rows: Sequence[LedgerRow]) -> list[str]:
    text = []
    for group in grouped(rows, "method", "learning_rate").values():
        blocks = len(group[0]["metrics"]["magnitude"])
        lines = [
            [
                f"{_method(row)}, {name}",
                *(f"{block['q50']:.3f}" for block in row["metrics"][key]),
                percent(row["metrics"]["validation"]),
            ]
            for row in group
            for key, name in (("magnitude", "ΔM"), ("direction", "ΔD"))
        ]
        header = ["median of", *(f"block {i + 1}" for i in range(blocks)), "validation"]
        text += titled(group_scale(group), markdown_table(header, lines))
    return text


def _pilot2(rows: Sequence[LedgerRow]) -> list[str]:
    text = []
    for group in grouped(rows, "task", "backbone").values():
        lines = []
        for task in dict.fromkeys(row["recipe"]["task"] for row in group):
            own = {row["recipe"]["backbone"]: row["metrics"] for row in group if row["recipe"]["task"] == task}
            plain = own.get("pretrained", {}).get("scores", {})
            cells = [plain.get(part, {}).get("test") for part in ("output", "magnitude", "angle")]
            cells.append(own.get("random", {}).get("scores", {}).get("output", {}).get("test"))
            lines.append([f"{task} ({next(iter(own.values()))['metric']})", *map(percent, cells)])
        header = ["task", "output", "magnitude", "angle", "output, random backbone"]
        text += titled(group_scale(group), markdown_table(header, lines))
    return text


def _suite(rows: Sequence[LedgerRow]) -> list[str]:
    text = []
    for group, search in sorted(suite_groups(rows), key=lambda pair: size_of(pair[0]), reverse=True):
        title = group_scale(group) + (f", {CHOSEN} the learning rate that the search chose" if search else "")
        text += titled(title, _suite_table(group, suite_choices(search)))
    return text


def _suite_search(rows: Sequence[LedgerRow]) -> list[str]:
    text = []
    for group in grouped(rows, *SUITE_RUN).values():
        title = f"{group_scale(group)}, held out of the training rows; {CHOSEN} the best learning rate"
        text += titled(title, _suite_table(group, suite_choices(group)))
    return text


def _suite_table(group: Sequence[LedgerRow], chosen: Mapping[str, float]) -> list[str]:
    """A line for each method and learning rate, the chosen ones marked."""
    tasks = group[0]["recipe"]["tasks"]
    rules = RULES if "strict" in group[0]["metrics"] else {}
    lines = []
    for own in grouped(group).values():
        method, rate = own[0]["recipe"]["method"], own[0]["recipe"]["learning_rate"]
        scores = {task: [row["metrics"]["accuracy"][task] for row in own] for task in tasks}
        means = [statistics.fmean(row["metrics"]["accuracy"].values()) for row in own]
        mark = CHOSEN if chosen.get(method) == rate else ""
        lines.append(
            [
                label_of(method),
                f"{own[0]['metrics']['trainable']:,}",
                f"{rate:g}{mark}" if rate else "–",
                *(spread(scores[task]) for task in tasks),
                spread(means),
                *(spread([rule(row["metrics"]) for row in own]) for rule in rules.values()),
            ]
        )
    return markdown_table(["method", "trainable", "learning rate", *tasks, "mean", *rules], lines)


def _instruct(rows: Sequence[LedgerRow]) -> list[str]:
    text = []
    for group in grouped(rows, "method", "learning_rate").values():
        lines = [
            [
                _method(row),
                f"{row['metrics']['trainable']:,}",
                *(f"{row['metrics'][name]:.3g}" if name in row["metrics"] else "–" for name in ("train_loss", "answers")),
                str(row["metrics"]["empty"]),
                f"{row['metrics']['words']:.1f}",
            ]
            for row in group
        ]  # fmt: skip
        header = ["method", "trainable", "training loss", "answers", "empty ones", "words an answer"]
        text += titled(f"{group_scale(group)}; not judged", markdown_table(header, lines))
    return text


def _multimodal(rows: Sequence[LedgerRow]) -> list[str]:
    text = []
    for group in grouped(rows, "method").values():
        tasks = list(group[0]["metrics"]["scores"])
        lines = [
            [_method(row), f"{row['metrics']['trainable']:,}", *(percent(row["metrics"]["scores"][task]) for task in tasks)]
            for row in group
        ]  # fmt: skip
        text += titled(group_scale(group), markdown_table(["method", "trainable", *tasks], lines))
    return text


def _efficiency(rows: Sequence[LedgerRow]) -> list[str]:
    text = []
    for row in rows:
        text += [f"*bench {row['recipe']['bench']}, {machine_of(row)}*", ""]
        for header, lines in benchmark_tables(row["metrics"]):
            text += [*markdown_table(header, lines), ""]
    return text


def _size(rows: Sequence[LedgerRow]) -> list[str]:
    counted, timed = ([row for row in rows if row["recipe"]["measure"] == name] for name in ("count", "step"))
    text = []
    if counted:
        lines = []
        for row in counted:
            total = row["metrics"]["parameters"]
            cells = [cell for name in COMPARED for cell in _share(row["metrics"][name], total)]
            lines.append([row["recipe"]["model"], f"{total:,}", *cells])
        names = [cell for name in COMPARED for cell in (label_of(name), "share")]
        title = "shapes of published models, without their weights; trainable parameters on every linear layer of the blocks"
        text += titled(title, markdown_table(["shape", "parameters", *names], lines))
    for group in grouped(timed, "hidden", "intermediate", "blocks", "heads", "kv_heads").values():
        setup, machine = group[0]["recipe"], group[0]["machine"]
        title = (
            f"random weights, {setup['batch']} rows of {setup['tokens']} tokens, medians of {setup['rounds']} rounds; "
            f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}, {machine_of(group[0])}"
        )
        lines = [
            [
                f"width {row['recipe']['hidden']}, {row['recipe']['blocks']} blocks",
                f"{row['metrics']['parameters']:,}",
                *(f"{row['metrics'][name]:.3g}" for name in ("floor_s", "step_s")),
                "{ratio:.2f} ({ratio_min:.2f} to {ratio_max:.2f})".format(**row["metrics"]),
            ]
            for row in group
        ]
        header = ["shape", "parameters", "floor, s", "step with RoAd1, s", "step over floor (rounds)"]
        text += titled(title, markdown_table(header, lines))
    return text


def _share(part: int, whole: int) -> tuple[str, str]:
    return f"{part:,}", f"{100 * part / whole:.3f} %"


def _rows_of(rows: Sequence[LedgerRow], name: str) -> list[LedgerRow]:
    """The rows that the tables of this name are made of."""
    own = {"glue_recipes": ("glue",)} | {suite: (suite, suite + SEARCH) for suite in SUITES}
    return [row for row in rows if row["recipe"].get("experiment") in own.get(name, (name,))]


TABLES: dict[str, Callable[[Sequence[LedgerRow]], list[str]]] = {
    "pilot1": _pilot1,
    "pilot2": _pilot2,
    "glue": methods_table,
    "glue_recipes": families_table,
    "glue_together": shared_batches_table,
    **dict.fromkeys(SUITES, _suite),
    **dict.fromkeys((suite + SEARCH for suite in SUITES), _suite_search),
    "instruct": _instruct,
    "multimodal": _multimodal,
    "efficiency": _efficiency,
    "size": _size,
}
