"""GLUE's tables: all methods, RoAd's recipes against LoRA's, and tasks scored together.

methods_table(rows_of("glue"))      # Markdown lines, a table for each scale, the largest first
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from ..runs.recipes import choose, validations
from ..tuning.methods import FAMILIES
from .markdown import DECIMALS, percent, spread, table, titled
from .scores import (
    COMPARED,
    Paired,
    Row,
    by_seed,
    chosen_runs,
    glue_groups,
    group_scale,
    grouped,
    label_of,
    mean_by_seed,
    paired,
    rates_of,
    size_of,
)

DIFFERENCE = "mean difference over the seeds that both have, in square brackets its 95 % interval by resampling seeds"


def methods_table(rows: Sequence[Row]) -> list[str]:
    text = []
    for group, search in _largest_first(glue_groups(rows)):
        tasks = list(dict.fromkeys(row["recipe"]["task"] for row in group))
        lines, scores = [], {}
        for method, runs in chosen_runs(group, search).items():
            runs = {task: runs.get(task, ({}, 0)) for task in tasks}
            scores[method] = {task: by_seed(kept) for task, (kept, _) in runs.items()}
            cells = [
                f"{spread(list(scores[method][task].values()))} ({tried or '?'})" if kept else "–"
                for task, (kept, tried) in runs.items()
            ]
            lines.append([label_of(method), _trainable(group, method), *cells, _mean_of(scores[method])])
        title = f"{group_scale(group)}; {rates_of(group[0]['recipe'])}"
        if all(method in scores for method in COMPARED) and (line := _difference(scores, COMPARED)):
            lines.append(line)
            title += f"; last line: {DIFFERENCE}"
        text += titled(title, table(["method", "trainable", *_columns(group), "mean"], lines))
    return text


def recipes_table(rows: Sequence[Row]) -> list[str]:
    """The recipes of both families with their validation means, and the test scores of those chosen."""
    text = []
    for group, search in _largest_first(glue_groups(rows)):
        tasks = list(dict.fromkeys(row["recipe"]["task"] for row in group))
        validation = validations(search)
        chosen = choose(validation, tasks)
        if chosen.keys() != FAMILIES.keys():
            continue
        runs = chosen_runs(group, search)
        scores = {
            method: {task: by_seed(runs.get(method, {}).get(task, ({}, 0))[0]) for task in tasks}
            for method in chosen.values()
        }
        lines = []
        for method in (method for names in FAMILIES.values() for method in names):
            mean = percent(statistics.fmean(validation[method][task] for task in tasks))
            own = scores.get(method, {})
            cells = [spread(list(own[task].values())) if own.get(task) else "–" for task in tasks]
            lines.append([label_of(method), _trainable(search, method), mean, *cells, _mean_of(own)])
        title = f"{group_scale(group)}; recipe and learning rates chosen on validation; test scores of those chosen"
        if line := _difference(scores, tuple(chosen.values())):
            lines.append([*line[:2], "–", *line[2:]])
            title += f"; last line: {DIFFERENCE}"
        text += titled(title, table(["recipe", "trainable", "validation", *_columns(group), "mean"], lines))
    return text


def together_table(rows: Sequence[Row]) -> list[str]:
    """Every run in shared batches, and the same runs alone."""
    text = []
    for group in grouped(rows, "method", "task", "learning_rate", "epochs", "batch_size").values():
        widest = max(len(row["recipe"]["task"]) for row in group)
        group = [row for row in group if len(row["recipe"]["task"]) == widest]
        tasks = list(dict.fromkeys(task for row in group for task in row["recipe"]["task"]))
        lines = [
            [
                f"{label_of(row['recipe']['method'])}, seed {row['seed']}, {name}",
                *(percent(row["metrics"][key].get(task)) for task in tasks),
            ]
            for row in group
            for key, name in (("test", "shared batches"), ("apart", "task by task"))
        ]
        text += titled(group_scale(group), table(["run", *tasks], lines))
    return text


def _largest_first(groups: list[tuple[list[Row], list[Row]]]) -> list[tuple[list[Row], list[Row]]]:
    return sorted(groups, key=lambda pair: size_of(pair[0]), reverse=True)


def _columns(group: Sequence[Row]) -> list[str]:
    """ "sst2 (accuracy)", for every task of GLUE."""
    return [
        f"{task} ({metric})"
        for task, metric in {row["recipe"]["task"]: row["metrics"]["metric"] for row in group}.items()
    ]


def _trainable(rows: Sequence[Row], method: str) -> str:
    return f"{next(row['metrics']['trainable'] for row in rows if row['recipe']['method'] == method):,}"


def _mean_of(scores: Mapping[str, Mapping[int, float]]) -> str:
    """The mean over tasks, where all of them have runs."""
    means = [statistics.fmean(own.values()) for own in scores.values() if own]
    return percent(statistics.fmean(means) if means and len(means) == len(scores) else None)


def _difference(scores: Mapping[str, Mapping[str, dict[int, float]]], methods: tuple[str, ...]) -> list[str]:
    """A line of one method less the other, task by task and of the mean; none where no task has two shared seeds."""
    one, other = (scores[method] for method in methods)
    found = [paired(one[task], other[task]) for task in one]
    found.append(paired(mean_by_seed(one.values()), mean_by_seed(other.values())))
    seeds = {difference.seeds for difference in found if difference}
    if not seeds:
        return []
    told = " or ".join(map(str, sorted(seeds)))
    return [f"{' − '.join(map(label_of, methods))}, {told} seeds", "–", *map(_interval, found)]


def _interval(found: Paired | None) -> str:
    if found is None:
        return "–"
    mean, low, high = (f"{100 * value:+.{DECIMALS}f}" for value in found[:3])
    return f"{mean} [{low}, {high}]"
