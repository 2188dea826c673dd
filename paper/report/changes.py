"""The figure of the composition study: what each condition does to each task's loss.

draw_changes(rows, Path("docs/data/composition/losses"))      # .png, .csv, .json
"""

from __future__ import annotations

from pathlib import Path

import torch

from roadkit.analysis.figures import files_of, saved_figure
from roadkit.analysis.geometry import Rows


def draw_changes(rows: Rows, target: Path) -> list[Path]:
    """A panel for each arm: what each condition (rows) does to the held-out loss of each task (columns)."""
    several = [row for row in rows if row["condition"] not in ("base", row["task"])]
    arms = list(dict.fromkeys(row["arm"] for row in several or rows))
    columns = min(len(arms), 4)
    lines = -(-len(arms) // columns)
    bound = max(abs(row["change"]) for row in rows) or 1.0
    with saved_figure(target, rows, width=4 * columns, height=0.4 + 2.8 * lines, rows=lines, columns=columns) as (
        figure,
        axes,
    ):
        for axis in axes.flat[len(arms) :]:
            axis.set_axis_off()
        for axis, arm in zip(axes.flat, arms, strict=False):
            own = [row for row in rows if row["arm"] == arm and row["condition"] != "base"]
            acting, tasks = (list(dict.fromkeys(row[key] for row in own)) for key in ("condition", "task"))
            grid = torch.full((len(acting), len(tasks)), torch.nan)
            for row in own:
                at = acting.index(row["condition"]), tasks.index(row["task"])
                grid[at] = row["change"]
                dark = abs(row["change"]) > 0.6 * bound
                axis.text(
                    at[1], at[0], f"{row['change']:+.2f}", ha="center", va="center", fontsize=7,
                    color="white" if dark else "black",
                )  # fmt: skip
            axis.imshow(grid.numpy(), cmap="PuOr_r", vmin=-bound, vmax=bound, aspect="auto")
            axis.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right")
            axis.set_yticks(range(len(acting)), ["all" if "+" in name else name for name in acting])
            axis.set_title(arm, fontsize=9)
        figure.colorbar(
            axes[0][0].images[0], ax=axes, fraction=0.03, label="change of loss, nats a token (less is better)"
        )
    return files_of(target)
