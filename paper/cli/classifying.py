"""`python -m paper glue` and `pilot`: experiments on encoders that classify sentences."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import typer

from roadkit.errors import RoadkitError

from ..ledger import Ledger
from .options import (
    SEEDS,
    bf16_option,
    budget_option,
    changed_scale,
    data_option,
    epochs_option,
    json_option,
    ledger_option,
    methods_option,
    model_option,
    progress_to,
    report_runs,
    rows_option,
    scale_option,
    seed_option,
    split_list,
    tasks_option,
    test_option,
    validation_option,
)


def glue(
    ledger: Path = ledger_option,
    data: Path | None = data_option,
    scale: str = scale_option,
    model: str | None = model_option,
    methods: str = methods_option,
    tasks: str = tasks_option,
    rows: int | None = rows_option,
    epochs: int | None = epochs_option,
    batch_size: int | None = typer.Option(None, help="Rows a step instead of the scale's."),
    validation: int | None = validation_option,
    test: int | None = test_option,
    bf16: bool | None = bf16_option,
    seeds: int | None = typer.Option(
        None, min=1, help="The first searches learning rates, further ones rerun the best; small: 1, full: 3."
    ),
    rates: int = typer.Option(4, min=1, max=4, help="Learning rates tried, the same number for every method."),
    presets: bool = typer.Option(False, help="No search: the paper's best settings of RoAd on RoBERTa (table C.3)."),
    search_epochs: int | None = typer.Option(
        None, help="Epochs of the runs that choose a learning rate; by default as many as the others have."
    ),
    grid: bool | None = typer.Option(
        None, "--grid/--no-grid", help="Search epochs and batch size too (table C.2); at full scale the default."
    ),
    head_learning_rate: float | None = typer.Option(
        None, min=0, help="Of the head (classifier and pooler) instead of the scale's; 0: the method's."
    ),
    frozen_pooler: bool = typer.Option(False, help="A BERT's pooler does not train with the classifier."),
    choose_recipes: bool = typer.Option(
        False, "--recipes", help="RoAd's best recipe against LoRA's, of three each, chosen on validation."
    ),
    output: Path | None = typer.Option(
        None, "--output", "-o", help="Keep RoAd's adapters here, and score their tasks in shared batches too."
    ),
    budget: float | None = budget_option,
    json: bool = json_option,
) -> None:
    """GLUE: every method with a learning rate chosen on one half of the development set, scored on the other."""
    from ..runs.families import run_families
    from ..runs.glue import TASKS_AT, run_glue
    from ..tuning.encoders import ENCODER_SCALES
    from ..tuning.methods import METHODS

    fixed = presets or choose_recipes or any(value is not None for value in (epochs, batch_size, search_epochs))
    if grid and fixed:
        raise RoadkitError("--grid searches epochs and batch sizes: leave out what fixes them, or --grid")
    if choose_recipes and (methods or presets):
        raise RoadkitError("--recipes chooses the methods: leave out --methods and --presets, or --recipes")
    settings = changed_scale(
        ENCODER_SCALES, scale, model=model, rows=rows, epochs=epochs, batch_size=batch_size,
        validation=validation, test=test, bf16=bf16, search_epochs=search_epochs,
        head_learning_rate=head_learning_rate, frozen_pooler=frozen_pooler,
    )  # fmt: skip
    settings = dataclasses.replace(settings, head_learning_rate=settings.head_learning_rate or None)
    finished = Ledger(ledger)
    options: dict[str, Any] = {
        "data": data, "tasks": split_list(tasks, TASKS_AT[scale]), "seeds": seeds or SEEDS[scale], "num_rates": rates,
        "output": output, "budget": budget, "progress": progress_to(json),
    }  # fmt: skip
    if choose_recipes:
        left = run_families(settings, finished, **options)
    else:
        default = [name for name in METHODS if name.startswith("road") or not presets]
        grid = scale == "full" and not fixed if grid is None else grid
        left = run_glue(settings, finished, methods=split_list(methods, default), presets=presets, grid=grid, **options)
    report_runs(finished, left, json)


def pilot(
    ledger: Path = ledger_option,
    data: Path | None = data_option,
    scale: str = scale_option,
    model: str | None = model_option,
    methods: str = methods_option,
    tasks: str = tasks_option,
    rows: int | None = rows_option,
    epochs: int | None = typer.Option(None, help="Epochs of fine-tuning instead of the scale's (a classifier: 10)."),
    validation: int | None = validation_option,
    test: int | None = test_option,
    bf16: bool | None = typer.Option(None, "--bf16/--no-bf16", help="16-bit arithmetic in fine-tuning."),
    seed: int = seed_option,
    budget: float | None = budget_option,
    json: bool = json_option,
) -> None:
    """The pilot studies: how fine-tuning moves representations, and whether length or direction carries the answer."""
    from ..runs.pilot import MOVED, PROBED, run_disentanglement, run_displacement
    from ..tuning.encoders import ENCODER_SCALES

    settings = changed_scale(
        ENCODER_SCALES, scale, model=model, rows=rows, epochs=epochs, validation=validation, test=test, bf16=bf16
    )
    finished = Ledger(ledger)
    options: dict[str, Any] = {"data": data, "seed": seed, "budget": budget, "progress": progress_to(json)}
    left = run_displacement(settings, finished, methods=split_list(methods, MOVED), **options)
    left += run_disentanglement(settings, finished, tasks=split_list(tasks, PROBED), **options)
    report_runs(finished, left, json)
