"""Figures of adapters: each is a PNG with its numbers as CSV and JSON beside it.

    draw_angles(geometry.angles(adapter), Path("figures/formal-angles"))      # .png, .csv, .json

They can be read in print and without colour vision. Lines have Okabe and Ito's colours and styles of their own, areas have
the colours of `cividis`. Every function returns the paths that it wrote.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..algebra import cluster
from ..files import write_atomic
from .geometry import Rows

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
STYLES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX*"


def draw_angles(rows: Rows, target: Path) -> list[Path]:
    """Quantiles of angles (left) and log scales (right) against the layer, a row of panels for each kind of module."""
    kinds = list(dict.fromkeys(row["module"] for row in rows))
    with saved_figure(target, rows, width=8, height=1.1 * len(kinds) + 0.8, rows=len(kinds), columns=2) as (
        figure,
        axes,
    ):
        for i, kind in enumerate(kinds):
            for j, quantity in enumerate(("angle", "log scale")):
                axis = axes[i][j]
                own = sorted((r for r in rows if (r["module"], r["quantity"]) == (kind, quantity)), key=_layer)
                layers = [row["layer"] for row in own]
                for low, high, alpha in (("q05", "q95", 0.25), ("q25", "q75", 0.5)):
                    bounds = [row[low] for row in own], [row[high] for row in own]
                    axis.fill_between(layers, *bounds, color=COLOURS[0], alpha=alpha, linewidth=0)
                axis.plot(layers, [row["q50"] for row in own], color=COLOURS[6], linewidth=1)
                axis.axhline(0, color="0.6", linewidth=0.5, zorder=0)
                axis.sharey(axes[0][j])
                if j == 0:
                    axis.set_ylabel(kind, rotation=0, ha="right", va="center")
                if i == 0:
                    axis.set_title(("angle, rad" if j == 0 else "ln scale") + " (median, 25–75 %, 5–95 %)", fontsize=9)
                if i + 1 < len(kinds):
                    axis.tick_params(labelbottom=False)
                else:
                    axis.set_xlabel("layer")
        figure.align_ylabels()
    return files_of(target)


def draw_heatmap(rows: Rows, target: Path) -> list[Path]:
    """Mean |angle| and mean |log scale| as maps of layers and kinds of modules."""
    kinds = list(dict.fromkeys(row["module"] for row in rows))
    layers = sorted({row["layer"] for row in rows})
    with saved_figure(target, rows, width=4 + 0.45 * len(kinds), height=1.6 + 0.16 * len(layers), columns=2) as (
        figure,
        axes,
    ):
        for axis, key, title in zip(
            axes[0], ("mean_angle", "mean_log_scale"), ("mean |θ|, rad", "mean |ln α|"), strict=True
        ):
            grid = torch.full((len(layers), len(kinds)), torch.nan)
            for row in rows:
                grid[layers.index(row["layer"]), kinds.index(row["module"])] = row[key]
            image = axis.imshow(grid.numpy(), cmap="cividis", aspect="auto", interpolation="nearest")
            axis.set_xticks(range(len(kinds)), kinds, rotation=90)
            step = max(1, len(layers) // 10)
            axis.set_yticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
            axis.set_title(title, fontsize=9)
            figure.colorbar(image, ax=axis, fraction=0.08)
        axes[0][0].set_ylabel("layer")
    return files_of(target)


def draw_distances(names: Sequence[str], matrix: torch.Tensor, target: Path) -> list[Path]:
    """A matrix of distances [n, n] in the order of its average-linkage tree, with the tree above it."""
    merges = cluster(matrix)
    order, heights, centres = _leaves(len(names), merges), {}, {}
    rows = [
        {"one": names[i], "other": names[j], "distance": float(matrix[i, j])}
        for i in range(len(names))
        for j in range(i + 1, len(names))
    ]
    side = max(3.5, 0.5 * len(names) + 1.5)
    with saved_figure(target, rows, width=side, height=1.3 * side, rows=2, ratios=(1, 3)) as (figure, axes):
        tree, axis = axes[0][0], axes[1][0]
        for place, leaf in enumerate(order):
            centres[leaf], heights[leaf] = place, 0.0
        for k, (one, other, height) in enumerate(merges):
            x, y = [centres[one]] * 2 + [centres[other]] * 2, [heights[one], height, height, heights[other]]
            tree.plot(x, y, color=COLOURS[6], linewidth=1)
            centres[len(names) + k], heights[len(names) + k] = (centres[one] + centres[other]) / 2, height
        tree.set_xlim(-0.5, len(names) - 0.5)
        tree.set_xticks([])
        tree.set_ylabel("rad a pair")
        shown = matrix[order][:, order]
        image = axis.imshow(shown.numpy(), cmap="cividis", vmin=0, aspect="auto", interpolation="nearest")
        ticks = [names[i] for i in order]
        axis.set_xticks(range(len(names)), ticks, rotation=90)
        axis.set_yticks(range(len(names)), ticks)
        if len(names) <= 12:
            for (i, j), value in ((index, float(shown[index])) for index in _cells(len(names))):
                dark = value < float(shown.max()) / 2
                axis.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=7, color="w" if dark else "k")
        figure.colorbar(image, ax=axis, orientation="horizontal", fraction=0.06, label="distance, rad a pair (rms)")
    return files_of(target)


def draw_sweep(curves: dict[str, Rows], target: Path) -> list[Path]:
    """Loss against strength, a curve for each adapter. 0 is the base model, 1 the adapter as it was trained."""
    rows = [{"adapter": name, **row} for name, curve in curves.items() for row in curve]
    with saved_figure(target, rows, width=5.5, height=3.6) as (_, axes):
        axis = axes[0][0]
        for i, (name, curve) in enumerate(curves.items()):
            kept = [row for row in curve if row["loss"] is not None]
            axis.errorbar(
                [row["strength"] for row in kept], [row["loss"] for row in kept],
                yerr=[row["stderr"] or 0 for row in kept], label=name, **_line(i), capsize=2,
            )  # fmt: skip
        for at, text in ((0, "base"), (1, "trained")):
            axis.axvline(at, color="0.6", linewidth=0.7, zorder=0)
            axis.annotate(text, (at, 1), xycoords=("data", "axes fraction"), fontsize=8, va="bottom", ha="center")
        axis.set_yscale("log")
        axis.set_xlabel("strength w of adapter**w")
        axis.set_ylabel("loss, nats a token")
        axis.legend(frameon=False)
    return files_of(target)


def draw_trajectory(rows: Rows, target: Path) -> list[Path]:
    """Against the step: mean |angle| of each kind of module, and the distances of the whole adapter."""
    kinds = list(dict.fromkeys(row["module"] for row in rows))
    with saved_figure(target, rows, width=8, height=3.4, columns=2) as (_, axes):
        for i, kind in enumerate(kinds):
            own = [row for row in rows if row["module"] == kind]
            axes[0][0].plot([row["step"] for row in own], [row["mean_angle"] for row in own], label=kind, **_line(i))
        own = [row for row in rows if row["module"] == kinds[0]]
        for i, (key, label) in enumerate((("from_base", "from the base"), ("to_last", "to the last checkpoint"))):
            axes[0][1].plot([row["step"] for row in own], [row[key] for row in own], label=label, **_line(i))
        axes[0][0].set_ylabel("mean |θ|, rad")
        axes[0][1].set_ylabel("distance, rad a pair (rms)")
        for axis in axes[0]:
            axis.set_xlabel("step")
            axis.set_ylim(bottom=0)
            axis.legend(frameon=False, fontsize=7)
    return files_of(target)


def _line(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": STYLES[index % len(STYLES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 4,
        "linewidth": 1.2,
    }


@contextmanager
def saved_figure(
    target: Path,
    numbers: Rows,
    *,
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    ratios: Sequence[float] | None = None,
):
    """A figure and its axes to draw on. At the end of the block it is written, with its numbers. Needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=ratios)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    yield figure, axes
    image, text = io.BytesIO(), io.StringIO()
    figure.savefig(image, dpi=150, metadata={"Software": None})
    writer = csv.DictWriter(text, fieldnames=list(numbers[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(numbers)
    contents = (image.getvalue(), text.getvalue(), json.dumps(numbers, indent=1) + "\n")
    for path, content in zip(files_of(target), contents, strict=True):
        write_atomic(path, content)


def files_of(target: Path) -> list[Path]:
    """The three files of a figure: target.png, target.csv and target.json."""
    return [target.with_name(target.name + suffix) for suffix in (".png", ".csv", ".json")]


def _layer(row: dict[str, Any]) -> int:
    return row["layer"]


def _cells(count: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(count) for j in range(count)]


def _leaves(count: int, merges: Sequence[tuple[int, int, float]]) -> list[int]:
    """The leaves of a linkage from left to right, in an order in which no branches cross."""
    members = {i: [i] for i in range(count)}
    for k, (one, other, _) in enumerate(merges):
        members[count + k] = members[one] + members[other]
    return members[count + len(merges) - 1]
