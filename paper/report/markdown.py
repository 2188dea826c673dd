"""Tables in Markdown, and how scores are written in their cells.

titled("small: minilm", markdown_table(["method", "mean"], [["RoAd1", spread([0.58, 0.59])]]))
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

DECIMALS = 1  # of percentages


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """A table as lines. The first column is text, the others are numbers."""
    ruled = [":--", *["--:"] * (len(header) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (header, ruled, *lines)]


def percent(value: float | None) -> str:
    """0.584 → 58.4; a dash if there is no value."""
    return "–" if value is None else f"{100 * value:.{DECIMALS}f}"


def spread(values: Sequence[float]) -> str:
    """The mean in percent; if there are several values also ± their sample deviation."""
    mean = percent(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {percent(statistics.stdev(values))}"


def titled(title: str, body: list[str]) -> list[str]:
    """A table below its title in italics."""
    return [f"*{title}*", "", *body, ""]
