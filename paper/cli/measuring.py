"""`python -m paper efficiency` and `size`: how long things take, and how many parameters they have."""

from __future__ import annotations

from pathlib import Path

import typer

from ..ledger import Ledger
from .options import budget_option, json_option, ledger_option, progress_to, report_runs, split_list


def efficiency(
    ledger: Path = ledger_option,
    benches: str = typer.Option(
        "", help="Benchmarks, separated by commas; empty: train, merge, mixed, scaling, figure4."
    ),
    rounds: int = typer.Option(0, help="Rounds of each; 0 is its own choice."),
    device: str = typer.Option("cpu", help="cpu, or cuda for --benches mixed,figure4."),
    seed: int = typer.Option(0, help="A new number measures again."),
    json: bool = json_option,
) -> None:
    """Training time and memory, merging, heterogeneous batches: the benchmarks of bench/, on a quiet machine."""
    from ..runs.efficiency import BENCHMARKS, run_efficiency

    finished, names = Ledger(ledger), split_list(benches, BENCHMARKS)
    run_efficiency(finished, names=names, rounds=rounds, device=device, seed=seed, progress=progress_to(json))
    report_runs(finished, 0, json)


def size(
    ledger: Path = ledger_option,
    rounds: int = typer.Option(9, min=1, help="Of each timing."),
    seed: int = typer.Option(0, help="A new number times again."),
    budget: float | None = budget_option,
    json: bool = json_option,
) -> None:
    """Trainable parameters at the shapes of published models, and the time of a step on small random ones."""
    from ..runs.size import StepTiming, run_size

    finished = Ledger(ledger)
    left = run_size(finished, timing=StepTiming(rounds=rounds), seed=seed, budget=budget, progress=progress_to(json))
    report_runs(finished, left, json)
