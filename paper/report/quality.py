"""Figure 1: quality against trainable parameters, a panel for each group of tasks, at the largest scale that was run.

data = quality_data(ledger.rows())
plot_quality(figure, data)
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from typing import Any

from roadkit.analysis.figures import COLOURS

from ..ledger import LedgerRow
from ..runs.reasoning import SEARCH
from ..tuning.methods import METHODS
from .scores import by_seed, chosen_runs, glue_groups, mean_by_seed, size_of, suite_groups, suite_rates
from .wording import group_scale, label_of

TITLES = {"glue": "GLUE", "commonsense": "commonsense", "arithmetic": "arithmetic"}
EXPERIMENTS = tuple(name + part for name in TITLES for part in ("", SEARCH))
MARKERS = "osD^vPX*<>phd8H1234"  # each method has its own, so that the figure can be read without colours
DASHES = {"base": "--", "head": ":"}  # methods without parameters


def quality_panels(rows: Sequence[LedgerRow]) -> list[tuple[str, list[LedgerRow], list[LedgerRow]]]:
    """(Experiment, its runs at the largest scale, the search that chose their learning rates), if it has runs."""
    found = []
    for name in TITLES:
        own = [row for row in rows if row["recipe"].get("experiment") in (name, name + SEARCH)]
        if groups := glue_groups(own) if name == "glue" else suite_groups(own):
            found.append((name, *max(groups, key=lambda pair: size_of(pair[0]))))
    return found


def quality_data(rows: Sequence[LedgerRow]) -> list[dict[str, Any]]:
    """A row for each method and panel: the mean over the tasks that every method has.

    If there are several seeds it has their deviation too.
    """
    data = []
    for name, group, search in quality_panels(rows):
        scores = _glue(group, search) if name == "glue" else _suite(group, search)
        scores = {method: found for method, found in scores.items() if any(found.values())}
        tasks = [task for task in _tasks(scores) if all(found.get(task) for found in scores.values())]
        scale = group_scale(group)
        for method, found in scores.items() if tasks else ():
            means = list(mean_by_seed(found[task] for task in tasks).values())
            data.append(
                {
                    "panel": name, "scale": scale, "tasks": " ".join(tasks), "method": method,
                    "trainable": next(r["metrics"]["trainable"] for r in group if r["recipe"]["method"] == method),
                    "seeds": len(means),
                    "score": round(statistics.fmean(statistics.fmean(found[task].values()) for task in tasks), 6),
                    "deviation": round(statistics.stdev(means), 6) if len(means) > 1 else "",
                }
            )  # fmt: skip
    return data


def plot_quality(figure: Any, data: Sequence[dict[str, Any]]) -> None:
    """Draw a panel for each experiment. Methods without parameters (heads not counted) are horizontal lines."""
    from matplotlib.ticker import NullFormatter

    figure.suptitle(None)  # each panel has a scale of its own
    names = list(dict.fromkeys(row["panel"] for row in data))
    methods = _ordered({row["method"] for row in data})
    places = {method: i for i, method in enumerate([*METHODS, *(m for m in methods if m not in {*METHODS, "base"})])}
    drawn: dict[str, Any] = {}
    for axes, panel in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        own = [row for row in data if row["panel"] == panel]
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        for row in own:
            score = 100 * row["score"]
            if row["trainable"] == 0:
                line = axes.axhline(score, color="0.35", linestyle=DASHES.get(row["method"], "-."))
            else:
                place = places[row["method"]]
                line = axes.errorbar(
                    [row["trainable"]], [score], yerr=[100 * row["deviation"]] if row["deviation"] != "" else None,
                    color=COLOURS[place % len(COLOURS)], marker=MARKERS[place % len(MARKERS)],
                    markersize=8, linestyle="", capsize=3,
                )  # fmt: skip
            drawn.setdefault(row["method"], line)
        _zoom(axes, [row["trainable"] for row in own if row["trainable"]])
        axes.set_xlabel("trainable parameters, heads not counted", fontsize="small")
        axes.set_ylabel(f"mean {'test score' if panel == 'glue' else 'accuracy'}, ×100")
        tasks = f"{TITLES[panel]}: {', '.join(own[0]['tasks'].split())}"
        lines = [line for part in (tasks, own[0]["scale"]) for line in textwrap.wrap(part, 120 // len(names))]
        axes.set_title("\n".join(lines), fontsize="small")
        axes.grid(alpha=0.3)
    figure.legend(
        [drawn[name] for name in methods], [label_of(name) for name in methods],
        loc="outside lower center", ncols=7, fontsize="small",
    )  # fmt: skip


def _zoom(axes: Any, counts: Sequence[int]) -> None:
    """Axes with half a decade beside the outermost points, and at least ten points of score, so that noise looks small."""
    if counts:
        axes.set_xlim(min(counts) / 3, max(counts) * 3)
    else:
        axes.xaxis.set_ticks_position("none")
        axes.set_xticklabels([])
    axes.margins(y=0.15)
    low, high = axes.get_ylim()
    spare = max(0.0, 10 - (high - low)) / 2
    axes.set_ylim(low - spare, high + spare)


Scores = dict[str, dict[str, dict[int, float]]]  # method → task → seed → score


def _glue(group: Sequence[LedgerRow], search: Sequence[LedgerRow]) -> Scores:
    return {
        method: {task: by_seed(kept) for task, (kept, _) in tasks.items()}
        for method, tasks in chosen_runs(group, search).items()
    }


def _suite(group: Sequence[LedgerRow], search: Sequence[LedgerRow]) -> Scores:
    """If a method ran with several learning rates, only the runs with the one that counts."""
    scores: Scores = {}
    rates = suite_rates(group, search)
    for row in group:
        if row["recipe"]["learning_rate"] == rates[row["recipe"]["method"]]:
            for task, accuracy in row["metrics"]["accuracy"].items():
                scores.setdefault(row["recipe"]["method"], {}).setdefault(task, {})[row["seed"]] = accuracy
    return scores


def _tasks(scores: Scores) -> list[str]:
    return list(dict.fromkeys(task for found in scores.values() for task in found))


def _ordered(methods: set[str]) -> list[str]:
    """Methods in the order of METHODS, so that each looks the same in every panel and edition; others last."""
    return [*(name for name in METHODS if name in methods), *sorted(methods - METHODS.keys())]
