"""Ledger rows as Markdown tables, one a kind of experiment; every table says at which scale its numbers were made.

tables(ledger.rows())["glue"]      # Markdown, with the scale in words above each table
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from . import paper
from .measured import blocks
from .scores import (
    Paired,
    Row,
    by_seed,
    chosen_runs,
    glue_groups,
    grouped,
    label_of,
    machine_of,
    mean_by_seed,
    paired,
    rates_of,
    scale_of,
    size_of,
)
from .summary import summary

DECIMALS = 1  # of percentages
COMPARED = ("road_1", "lora")  # in the last line of GLUE's tables, and by size


def tables(rows: Sequence[Row]) -> dict[str, str]:
    """Experiment → its tables, `paper_…` → the paper's, `summary`; an experiment without finished runs says so."""
    found = {
        name: "\n".join(
            make([row for row in rows if row["recipe"].get("experiment") == name]) or ["No finished run yet."]
        )
        for name, make in TABLES.items()
    }
    quoted = {f"paper_{name}": "\n".join(paper.quoted(name)) for name in paper.experiments()}
    return found | quoted | {"summary": "\n".join(summary(rows))}


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
    return label_of(str(row["recipe"]["method"]))


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
    for group, search in sorted(glue_groups(rows), key=lambda pair: size_of(pair[0]), reverse=True):
        tasks = list(dict.fromkeys(row["recipe"]["task"] for row in group))
        metric = {row["recipe"]["task"]: row["metrics"]["metric"] for row in group}
        lines, scores = [], {}
        for method, runs in chosen_runs(group, search).items():
            runs = {task: runs.get(task, ({}, 0)) for task in tasks}
            scores[method] = {task: by_seed(kept) for task, (kept, _) in runs.items()}
            cells = [
                f"{spread(list(scores[method][task].values()))} ({tried or '?'})" if kept else "–"
                for task, (kept, tried) in runs.items()
            ]
            means = [statistics.fmean(own.values()) for own in scores[method].values() if own]
            trainable = next(row["metrics"]["trainable"] for row in group if row["recipe"]["method"] == method)
            mean = percent(statistics.fmean(means) if len(means) == len(tasks) else None)
            lines.append([label_of(method), f"{trainable:,}", *cells, mean])
        title = f"{_scale(group)}; {rates_of(group[0]['recipe'])}"
        if all(method in scores for method in COMPARED) and (line := _difference(*(scores[m] for m in COMPARED))):
            lines.append(line)
            title += (
                "; last line: mean difference over the seeds that both have, in square brackets its 95 % interval "
                "by resampling seeds"
            )
        header = ["method", "trainable", *(f"{task} ({metric[task]})" for task in tasks), "mean"]
        text += _titled(title, markdown(header, lines))
    return text


def _together(rows: Sequence[Row]) -> list[str]:
    """Every run in shared batches, and the same runs alone."""
    text = []
    for group in grouped(rows, "method", "task", "learning_rate", "epochs", "batch_size").values():
        widest = max(len(row["recipe"]["task"]) for row in group)
        group = [row for row in group if len(row["recipe"]["task"]) == widest]
        tasks = list(dict.fromkeys(task for row in group for task in row["recipe"]["task"]))
        lines = [
            [f"{_method(row)}, seed {row['seed']}, {name}", *(percent(row["metrics"][key].get(task)) for task in tasks)]
            for row in group
            for key, name in (("test", "shared batches"), ("apart", "task by task"))
        ]
        text += _titled(_scale(group), markdown(["run", *tasks], lines))
    return text


def _difference(one: Mapping[str, dict[int, float]], other: Mapping[str, dict[int, float]]) -> list[str]:
    """A line of paired differences, task by task and of the mean; none where no task has two shared seeds."""
    found = [paired(one[task], other[task]) for task in one]
    found.append(paired(mean_by_seed(one.values()), mean_by_seed(other.values())))
    seeds = {difference.seeds for difference in found if difference}
    if not seeds:
        return []
    told = " or ".join(map(str, sorted(seeds)))
    return [f"{' − '.join(map(label_of, COMPARED))}, {told} seeds", "–", *map(_interval, found)]


def _interval(found: Paired | None) -> str:
    if found is None:
        return "–"
    mean, low, high = (f"{100 * value:+.{DECIMALS}f}" for value in found[:3])
    return f"{mean} [{low}, {high}]"


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
        text += [f"*bench {row['recipe']['bench']}, {machine_of(row)}*", ""]
        for header, lines in blocks(row["metrics"]):
            text += [*markdown(header, lines), ""]
    return text


def _size(rows: Sequence[Row]) -> list[str]:
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
        text += _titled(title, markdown(["shape", "parameters", *names], lines))
    for group in grouped(timed, "hidden", "intermediate", "blocks", "heads", "kv_heads").values():
        recipe, machine = group[0]["recipe"], group[0]["machine"]
        title = (
            f"random weights, {recipe['batch']} rows of {recipe['tokens']} tokens, medians of {recipe['rounds']} rounds; "
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
        text += _titled(title, markdown(header, lines))
    return text


def _share(part: int, whole: int) -> tuple[str, str]:
    return f"{part:,}", f"{100 * part / whole:.3f} %"


def _scale(group: Sequence[Row]) -> str:
    return scale_of(group[0]["recipe"], len({row["seed"] for row in group}))


TABLES: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "pilot1": _pilot1,
    "pilot2": _pilot2,
    "glue": _glue,
    "glue_together": _together,
    "commonsense": _reasoning,
    "arithmetic": _reasoning,
    "instruct": _instruct,
    "multimodal": _multimodal,
    "efficiency": _efficiency,
    "size": _size,
}
