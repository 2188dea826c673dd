"""Ledger rows as figures, each with its data beside it.

draw_figures(ledger.rows(), Path("docs/figures"))      # pilot1.png and .csv, pilot2.…, glue.…
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roadkit.analysis.figures import COLOURS, MARKERS, STYLES
from roadkit.files import write_atomic

from ..ledger import LedgerRow
from .quality import EXPERIMENTS, plot_quality, quality_data, quality_panels
from .scores import chosen_runs
from .wording import label_of, machine_of, scale_of

Numbers = dict[str, Any]  # a line of a figure's data: column → value

SHOWN = ("mean", "q05", "q25", "q50", "q75", "q95")


def draw_figures(rows: Sequence[LedgerRow], folder: Path) -> list[Path]:
    """Write a figure and its data for every experiment that has finished runs and a figure."""
    written = []
    for name, (experiments, data_of, plot) in FIGURES.items():
        data = data_of([row for row in rows if row["recipe"].get("experiment") in experiments])
        if not data:
            continue
        write_atomic(folder / f"{name}.csv", to_csv(data))
        write_atomic(folder / f"{name}.png", _png(plot, data))
        written += [folder / f"{name}.csv", folder / f"{name}.png"]
    return written


def to_csv(rows: Sequence[Numbers]) -> str:
    """Rows with the same columns as CSV, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _scale(row: LedgerRow) -> str:
    return scale_of(row["recipe"], 1)


def _pilot1(rows: Sequence[LedgerRow]) -> list[Numbers]:
    return [
        {
            "scale": _scale(row), "method": label_of(row["recipe"]["method"]), "measure": measure, "block": i,
            **{key: round(block[key], 6) for key in SHOWN},
        }
        for row in rows
        for measure in ("magnitude", "direction")
        for i, block in enumerate(row["metrics"][measure], 1)
    ]  # fmt: skip


def _pilot2(rows: Sequence[LedgerRow]) -> list[Numbers]:
    return [
        {
            "scale": _scale(row), "task": row["recipe"]["task"], "metric": row["metrics"]["metric"],
            "head": part if row["recipe"]["backbone"] == "pretrained" else "random backbone",
            "test": round(score["test"], 6),
        }
        for row in rows
        for part, score in row["metrics"]["scores"].items()
    ]  # fmt: skip


def _glue(rows: Sequence[LedgerRow]) -> list[Numbers]:
    """The chosen runs at the largest scale."""
    if not rows:
        return []
    ((_, group, search),) = quality_panels(rows)
    scale = scale_of(group[0]["recipe"], len({row["seed"] for row in group}))
    chosen = chosen_runs(group, search).values()
    kept = [row for tasks in chosen for runs, _ in tasks.values() for row in runs.values()]
    return [
        {
            "scale": scale, "task": row["recipe"]["task"], "method": label_of(row["recipe"]["method"]),
            "learning_rate": row["recipe"]["learning_rate"], "seed": row["seed"],
            "trainable": row["metrics"]["trainable"], "validation": round(row["metrics"]["validation"], 6),
            "test": round(row["metrics"]["test"], 6),
        }
        for row in kept
    ]  # fmt: skip


_PLACED = re.compile(r"(?P<side>.+?)(?:,? rank (?P<rank>\d+)|, (?P<tokens>\d+) tokens|, (?P<requests>\d+) requests)?")
OVER = {  # what figure 4 is drawn over → its panel's title
    "rank": "one request",
    "tokens": "eight requests, each its own adapter",
    "requests": "each its own adapter, 16 tokens",
}


def _figure4(rows: Sequence[LedgerRow]) -> list[Numbers]:
    """The newest run of bench figure4. Its names hold a side and a place: "lora rank 8", "peft lora, 32 tokens"."""
    measured = [row for row in rows if row["recipe"]["bench"] == "figure4"][-1:]
    data = []
    for row in measured:
        scale = f"smollm2, {machine_of(row)}"
        for sides in row["metrics"]["tokens_per_second"].values():
            for name, rates in sides.items():
                found = _PLACED.fullmatch(name)
                assert found is not None  # any name is a side at least
                over, at = next(((unit, int(found[unit])) for unit in OVER if found[unit]), ("rank", ""))
                numbers = {key: round(rates[key], 3) for key in ("median", "min", "max")}
                data.append({"scale": scale, "over": over, "side": found["side"], "at": at, **numbers})
    return data


def _plot_figure4(figure: Any, data: Sequence[Numbers]) -> None:
    """Left: LoRA kept apart over its rank; then different adapters over the tokens generated, and over their number."""
    units = [unit for unit in OVER if any(row["over"] == unit for row in data)]
    looks = {side: k for k, side in enumerate(dict.fromkeys(row["side"] for row in data))}
    for axes, unit in zip(figure.subplots(1, len(units), squeeze=False)[0], units, strict=True):
        own = [row for row in data if row["over"] == unit]
        for side in dict.fromkeys(row["side"] for row in own):
            rows, k = [row for row in own if row["side"] == side], looks[side]
            style = {"color": COLOURS[k % len(COLOURS)], "linestyle": STYLES[k % len(STYLES)]}
            if rows[0]["at"] == "":
                axes.axhline(rows[0]["median"], label=side, **style)
                continue
            medians = [row["median"] for row in rows]
            reach = [[row["median"] - row["min"] for row in rows], [row["max"] - row["median"] for row in rows]]
            places = [row["at"] for row in rows]
            marker = MARKERS[k % len(MARKERS)]
            axes.errorbar(places, medians, yerr=reach, marker=marker, capsize=3, label=side, **style)
        places = sorted({row["at"] for row in own if row["at"] != ""})
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.set_ylim(bottom=0)
        axes.set(ylabel="tokens per second", xlabel={"tokens": "tokens generated"}.get(unit, unit))
        axes.set_title(OVER[unit], fontsize="medium")
        axes.legend(fontsize="small")


def _plot_pilot1(figure: Any, data: Sequence[Numbers]) -> None:
    """Boxes from the 25th to the 75th percentile, whiskers from the 5th to the 95th."""
    methods = list(dict.fromkeys(row["method"] for row in data))
    titles = {"magnitude": "ΔM: relative change of length", "direction": "ΔD: cosine with the pretrained"}
    for axes, (measure, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for k, method in enumerate(methods):
            own = [row for row in data if row["measure"] == measure and row["method"] == method]
            boxes = [
                {"med": row["q50"], "q1": row["q25"], "q3": row["q75"], "whislo": row["q05"], "whishi": row["q95"]}
                for row in own
            ]
            places = [row["block"] + 0.25 * (k - (len(methods) - 1) / 2) for row in own]
            color = f"C{k}"
            axes.bxp(
                boxes, positions=places, widths=0.2, showfliers=False, patch_artist=True, manage_ticks=False,
                boxprops={"facecolor": color, "alpha": 0.5}, medianprops={"color": color},
            )  # fmt: skip
            axes.plot([], [], color=color, label=method)
        axes.set(title=title, xlabel="block")
        axes.legend(fontsize="small")


def _plot_pilot2(figure: Any, data: Sequence[Numbers]) -> None:
    tasks, heads = (list(dict.fromkeys(row[name] for row in data)) for name in ("task", "head"))
    axes = figure.subplots()
    for k, head in enumerate(heads):
        own = {row["task"]: row["test"] for row in data if row["head"] == head}
        places = [i + 0.2 * (k - (len(heads) - 1) / 2) for i in range(len(tasks))]
        axes.bar(places, [100 * own.get(task, 0.0) for task in tasks], width=0.18, label=head)
    metric = {row["task"]: row["metric"] for row in data}
    axes.set_xticks(range(len(tasks)), [f"{task}\n{metric[task]}" for task in tasks])
    axes.set(ylabel="test score, ×100", title="what a classifier sees of the representation")
    axes.legend(fontsize="small")


def _plot_glue(figure: Any, data: Sequence[Numbers]) -> None:
    from matplotlib.ticker import NullFormatter

    tasks = list(dict.fromkeys(row["task"] for row in data))
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        for k, method in enumerate(dict.fromkeys(row["method"] for row in data)):
            own = [row for row in data if row["task"] == task and row["method"] == method]
            axes.scatter(
                [max(row["trainable"], 1) for row in own], [100 * row["test"] for row in own],
                color=f"C{k % 10}", marker="os"[k // 10], label=method,
            )  # fmt: skip
        axes.set(xscale="log", title=task)
        axes.xaxis.set_minor_formatter(NullFormatter())
    figure.supxlabel("trainable parameters, heads not counted", fontsize="small")
    figure.supylabel("test score, ×100", fontsize="small")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize="x-small")


def _png(plot: Any, data: Sequence[Numbers]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("\n".join(dict.fromkeys(row["scale"] for row in data)), fontsize="small", wrap=True)
    plot(figure, data)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()


FIGURES = {  # name → experiments, data, plot
    "pilot1": (("pilot1",), _pilot1, _plot_pilot1),
    "pilot2": (("pilot2",), _pilot2, _plot_pilot2),
    "glue": (("glue",), _glue, _plot_glue),
    "figure1": (EXPERIMENTS, quality_data, plot_quality),
    "figure4": (("efficiency",), _figure4, _plot_figure4),
}
