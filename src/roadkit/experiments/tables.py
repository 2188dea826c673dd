"""Ledger rows as Markdown tables, one a kind of experiment; every table says at which scale its numbers were made.

tables(ledger.rows())["glue"]      # Markdown, with the scale in words above each table
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from . import decoders, multimodal
from .glue import best
from .methods import METHODS

Row = Mapping[str, Any]
DECIMALS = 1  # of percentages
LABELS = decoders.LABELS | multimodal.LABELS | {name: method.label for name, method in METHODS.items()}


def tables(rows: Sequence[Row]) -> dict[str, str]:
    """Experiment → its tables; an experiment without finished runs says so."""
    return {
        name: "\n".join(
            make([row for row in rows if row["recipe"].get("experiment") == name]) or ["No finished run yet."]
        )
        for name, make in TABLES.items()
    }


def scale_of(recipe: Mapping[str, Any], seeds: int) -> str:
    """ "small: minilm, 200 training rows, 3 epochs, 1 seed"."""
    parts = {
        "model": str(recipe.get("model")),
        "rows": f"{recipe.get('rows')} training rows",
        "epochs": f"{recipe.get('epochs')} epoch{'s' * (recipe.get('epochs') != 1)}",
        "test": f"up to {recipe.get('test')} test rows",
        "questions": f"{recipe.get('questions')} questions a task",
    }
    told = [part for name, part in parts.items() if recipe.get(name)] + [f"{seeds} seed{'s' * (seeds != 1)}"]
    return f"{recipe['scale']}: {', '.join(told)}"


def grouped(rows: Iterable[Row], *names: str) -> dict[tuple, list[Row]]:
    """Rows whose recipes agree in everything but `names`, in the order in which they came."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        shared = {key: value for key, value in row["recipe"].items() if key not in names}
        groups.setdefault(tuple(sorted((key, str(value)) for key, value in shared.items())), []).append(row)
    return groups


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """The first column is text, the others numbers."""
    ruled = [":--", *["--:"] * (len(header) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (header, ruled, *lines)]


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.{DECIMALS}f}"


def spread(values: Sequence[float]) -> str:
    """Mean, and ± the sample deviation where there are several."""
    mean = percent(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {percent(statistics.stdev(values))}"


def _titled(title: str, body: list[str]) -> list[str]:
    return [f"*{title}*", "", *body, ""]


def _method(row: Row) -> str:
    name = str(row["recipe"]["method"])
    return LABELS.get(name, name)


def _pilot1(rows: Sequence[Row]) -> list[str]:
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
        text += _titled(_scale(group), markdown(header, lines))
    return text


def _pilot2(rows: Sequence[Row]) -> list[str]:
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
        text += _titled(_scale(group), markdown(header, lines))
    return text


def _glue(rows: Sequence[Row]) -> list[str]:
    text = []
    for group in grouped(rows, "task", "method", "learning_rate").values():
        tasks = list(dict.fromkeys(row["recipe"]["task"] for row in group))
        methods = list(dict.fromkeys(row["recipe"]["method"] for row in group))
        metric = {row["recipe"]["task"]: row["metrics"]["metric"] for row in group}
        lines = []
        for method in methods:
            own = [row for row in group if row["recipe"]["method"] == method]
            cells = {task: _chosen([row for row in own if row["recipe"]["task"] == task]) for task in tasks}
            done = [statistics.fmean(scores) for scores, _ in cells.values() if scores]
            lines.append(
                [
                    METHODS[method].label,
                    f"{own[0]['metrics']['trainable']:,}",
                    *(f"{spread(scores)} ({rates})" if scores else "–" for scores, rates in cells.values()),
                    percent(statistics.fmean(done) if len(done) == len(tasks) else None),
                ]
            )
        header = ["method", "trainable", *(f"{task} ({metric[task]})" for task in tasks), "mean"]
        title = f"{_scale(group)}; in brackets how many learning rates were tried"
        text += _titled(title, markdown(header, lines))
    return text


def _chosen(rows: Sequence[Row]) -> tuple[list[float], int]:
    """Test scores of every seed at the learning rate that is best on the first seed's validation; rates tried."""
    first = [row for row in rows if row["seed"] == 0]
    if not first:
        return [], 0
    rate = best(first)["recipe"]["learning_rate"]
    newest = {row["seed"]: row["metrics"]["test"] for row in rows if row["recipe"]["learning_rate"] == rate}
    return list(newest.values()), len({row["recipe"]["learning_rate"] for row in first})


def _reasoning(rows: Sequence[Row]) -> list[str]:
    text = []
    for group in grouped(rows, "method", "learning_rate").values():
        tasks = group[0]["recipe"]["tasks"]
        lines = []
        for method in dict.fromkeys(row["recipe"]["method"] for row in group):
            own = [row for row in group if row["recipe"]["method"] == method]
            scores = {task: [row["metrics"]["accuracy"][task] for row in own] for task in tasks}
            means = [statistics.fmean(row["metrics"]["accuracy"].values()) for row in own]
            answered = [row["metrics"]["answered"] for row in own if "answered" in row["metrics"]]
            lines.append(
                [
                    _method(own[0]),
                    f"{own[0]['metrics']['trainable']:,}",
                    *(spread(scores[task]) for task in tasks),
                    spread(means),
                    spread(answered) if answered else "–",
                ]
            )
        header = ["method", "trainable", *tasks, "mean", "with an answer word"]
        text += _titled(_scale(group), markdown(header, lines))
    return text


def _instruct(rows: Sequence[Row]) -> list[str]:
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
        text += _titled(f"{_scale(group)}; not judged", markdown(header, lines))
    return text


def _multimodal(rows: Sequence[Row]) -> list[str]:
    text = []
    for group in grouped(rows, "method").values():
        tasks = list(group[0]["metrics"]["scores"])
        lines = [
            [_method(row), f"{row['metrics']['trainable']:,}", *(percent(row["metrics"]["scores"][task]) for task in tasks)]
            for row in group
        ]  # fmt: skip
        text += _titled(_scale(group), markdown(["method", "trainable", *tasks], lines))
    return text


def _efficiency(rows: Sequence[Row]) -> list[str]:
    text = []
    for row in rows:
        numbers = dict(_flat(row["metrics"]))
        machine = f"{row['machine']['cpus']} {row['machine']['architecture']} cores, {row['machine']['accelerator'] or 'no GPU'}"
        lines = [[name, f"{value:.4g}"] for name, value in numbers.items()]
        text += _titled(f"bench {row['recipe']['bench']}, {machine}", markdown(["figure", "value"], lines))
    return text


def _flat(value: Any, name: str = "") -> Iterable[tuple[str, float]]:
    """Every number of nested dictionaries, under its path; lists of repeated measurements are left out."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def _scale(group: Sequence[Row]) -> str:
    return scale_of(group[0]["recipe"], len({row["seed"] for row in group}))


TABLES: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "pilot1": _pilot1,
    "pilot2": _pilot2,
    "glue": _glue,
    "commonsense": _reasoning,
    "arithmetic": _reasoning,
    "instruct": _instruct,
    "multimodal": _multimodal,
    "efficiency": _efficiency,
}
