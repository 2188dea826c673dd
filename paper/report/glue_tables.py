"""GLUE's tables: all methods, the family of RoAd against that of LoRA, and tasks in shared batches.

methods_table(rows)      # Markdown lines, a table for each scale, the largest first; rows of the experiment "glue"
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from ..ledger import LedgerRow
from ..runs.families import choose_members, validation_scores
from ..tuning.methods import FAMILIES
from .markdown import DECIMALS, markdown_table, percent, spread, titled
from .scores import (
    COMPARED,
    PairedDifference,
    by_seed,
    chosen_runs,
    glue_groups,
    grouped,
    mean_by_seed,
    paired_difference,
    size_of,
)
from .wording import group_scale, label_of, rates_of

DIFFERENCE = "mean difference over the seeds that both have, in square brackets its 95 % interval by resampling seeds"


def methods_table(rows: Sequence[LedgerRow]) -> list[str]:
    """A line for each method; the last line compares RoAd1 with LoRA, if both have two seeds or more."""
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
        text += titled(title, markdown_table(["method", "trainable", *_columns(group), "mean"], lines))
    return text


def families_table(rows: Sequence[LedgerRow]) -> list[str]:
    """The members of both families with their validation means, and the test scores of those chosen."""
    text = []
    for group, search in _largest_first(glue_groups(rows)):
        tasks = list(dict.fromkeys(row["recipe"]["task"] for row in group))
        validation = validation_scores(search)
        chosen = choose_members(validation, tasks)
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
        text += titled(title, markdown_table(["recipe", "trainable", "validation", *_columns(group), "mean"], lines))
    return text


def shared_batches_table(rows: Sequence[LedgerRow]) -> list[str]:
    """The scores of tasks in shared batches, and of the same adapters task by task."""
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
        text += titled(group_scale(group), markdown_table(["run", *tasks], lines))
    return text


def _largest_first(
    groups: list[tuple[list[LedgerRow], list[LedgerRow]]],
) -> list[tuple[list[LedgerRow], list[LedgerRow]]]:
    return sorted(groups, key=lambda pair: size_of(pair[0]), reverse=True)


def _columns(group: Sequence[LedgerRow]) -> list[str]:
    """ "sst2 (accuracy)", for every task of GLUE."""
    return [
        f"{task} ({metric})"
        for task, metric in {row["recipe"]["task"]: row["metrics"]["metric"] for row in group}.items()
    ]


def _trainable(rows: Sequence[LedgerRow], method: str) -> str:
    return f"{next(row['metrics']['trainable'] for row in rows if row['recipe']['method'] == method):,}"


def _mean_of(scores: Mapping[str, Mapping[int, float]]) -> str:
    """The mean over tasks, if all of them have runs."""
    means = [statistics.fmean(own.values()) for own in scores.values() if own]
    return percent(statistics.fmean(means) if means and len(means) == len(scores) else None)


def _difference(scores: Mapping[str, Mapping[str, dict[int, float]]], methods: tuple[str, ...]) -> list[str]:
    """A line of one method minus the other, of each task and of the mean; empty if no task has two seeds of both."""
    one, other = (scores[method] for method in methods)
    found = [paired_difference(one[task], other[task]) for task in one]
    found.append(paired_difference(mean_by_seed(one.values()), mean_by_seed(other.values())))
    seeds = {difference.seeds for difference in found if difference}
    if not seeds:
        return []
    told = " or ".join(map(str, sorted(seeds)))
    return [f"{' − '.join(map(label_of, methods))}, {told} seeds", "–", *map(_interval, found)]


def _interval(found: PairedDifference | None) -> str:
    if found is None:
        return "–"
    mean, low, high = (f"{100 * value:+.{DECIMALS}f}" for value in found[:3])
    return f"{mean} [{low}, {high}]"
