"""What a run reports after every step and evaluation, and two ways to show it.

run(recipe, progress=lambda report: print(report.step, report.loss))
with console_progress(console, "json") as show: run(recipe, progress=show)      # a bar, or lines without a terminal
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_EVERY = 10.0  # seconds between two lines if there is no terminal


@dataclass(frozen=True)
class Report:
    """How far a run has come.

    step, num_steps      of the optimiser
    loss                 of the step, in nats a token (for labels: the task's own)
    tokens_per_second    trained on, padding not counted
    seconds_left         of training; evaluations are not counted
    metrics              on the held-out rows (`loss`, `accuracy`, …) after an evaluation, otherwise empty
    """

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    seconds_left: float
    metrics: Mapping[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """The report as one line of text."""
        if self.metrics:
            values = "  ".join(f"{name} {value:.4f}" for name, value in self.metrics.items())
            return f"step {self.step}/{self.num_steps}  held out: {values}"
        return (
            f"step {self.step}/{self.num_steps}  loss {self.loss:.4f}  {self.tokens_per_second:,.0f} tokens/s  "
            f"{clock(self.seconds_left)} left"
        )


Progress = Callable[[Report], None]


def clock(seconds: float) -> str:
    """75 → '1:15'."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def console_progress(console: Console, title: str) -> RichProgress | PlainProgress:
    """A bar on a terminal, lines in a log."""
    return RichProgress(console, title) if console.is_terminal else PlainProgress(console, title)


class RichProgress:
    """A bar with loss, tokens per second and time left; evaluations are printed above it."""

    def __init__(self, console: Console, title: str = "training"):
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            console=console,
        )
        self._task = self._bar.add_task(title, total=None, facts="")

    def __enter__(self) -> RichProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, report: Report) -> None:
        if report.metrics:
            self._bar.console.print(report.line())
            return
        facts = f"loss {report.loss:.4f}  {report.tokens_per_second:,.0f} tokens/s  {clock(report.seconds_left)} left"
        self._bar.update(self._task, total=report.num_steps, completed=report.step, facts=facts)


class PlainProgress:
    """A line every ten seconds, and for the first and the last step and every evaluation."""

    def __init__(self, console: Console, title: str = "training"):
        self._console, self._title, self._last = console, title, 0.0

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def __call__(self, report: Report) -> None:
        now = time.monotonic()
        if report.metrics or report.step in (1, report.num_steps) or now - self._last >= PLAIN_EVERY:
            self._last = now
            self._console.print(f"{self._title}  {report.line()}", highlight=False, soft_wrap=True)
