"""`python -m paper commonsense`, `arithmetic`, `instruct`, `win-rate` and `multimodal`: experiments on models that answer."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable
from pathlib import Path

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
    new_tokens_option,
    progress_to,
    questions_option,
    report_runs,
    rows_option,
    scale_option,
    seed_option,
    split_list,
    tasks_option,
)


def _suite_command(suite: str, text: str) -> Callable[..., None]:
    """The command of a suite; `text` is its help."""

    def command(
        ledger: Path = ledger_option,
        data: Path | None = data_option,
        scale: str = scale_option,
        model: str | None = model_option,
        methods: str = methods_option,
        tasks: str = tasks_option,
        rows: int | None = rows_option,
        questions: int | None = questions_option,
        new_tokens: int | None = new_tokens_option,
        epochs: int | None = epochs_option,
        bf16: bool | None = bf16_option,
        learning_rate: float | None = typer.Option(None, min=0, help="Of every method, instead of its own."),
        rates: int | None = typer.Option(
            None,
            min=1,
            max=4,
            help="Choose each method's learning rate in short runs first, of so many around its own.",
        ),
        search_rows: int | None = typer.Option(None, min=1, help="Training rows of these runs, by default 500."),
        held_out: int | None = typer.Option(
            None,
            min=1,
            help="Training rows of each task that score these runs and are not shown to them; by default 75.",
        ),
        every_epoch: bool | None = typer.Option(
            None,
            "--every-epoch/--last-epoch",
            help="Score after each epoch and report the best; the full scale's default.",
        ),
        seed: int = seed_option,
        seeds: int | None = typer.Option(None, min=1, help="How many, from --seed on; small: 1, full: 3."),
        budget: float | None = budget_option,
        json: bool = json_option,
    ) -> None:
        from ..runs.reasoning import SUITE_METHODS, SUITE_SCALES, RateSearch, run_suite

        settings = changed_scale(
            SUITE_SCALES[suite], scale, model=model, rows=rows, questions=questions, epochs=epochs,
            new_tokens=new_tokens, bf16=bf16,
        )  # fmt: skip
        given = {"rates": rates, "rows": search_rows, "held_out": held_out}
        given = {field: value for field, value in given.items() if value is not None}
        if given and rates is None:
            raise RoadkitError("--search-rows and --held-out are for a search of learning rates: --rates 3 makes one")
        finished = Ledger(ledger)
        left = run_suite(
            suite,
            settings,
            finished,
            data=data,
            methods=split_list(methods, SUITE_METHODS),
            tasks=split_list(tasks, ()),
            learning_rate=learning_rate,
            search=RateSearch(**given) if given else None,
            seeds=range(seed, seed + (seeds or SEEDS[scale])),
            every_epoch=scale == "full" if every_epoch is None else every_epoch,
            budget=budget,
            progress=progress_to(json),
        )
        report_runs(finished, left, json)

    command.__name__, command.__doc__ = suite, text
    return command


commonsense = _suite_command(
    "commonsense", "Eight commonsense tasks, one model for all, answers scored as LLM-Adapters does."
)
arithmetic = _suite_command(
    "arithmetic",
    "AQuA, GSM8K, MAWPS and SVAMP, answers scored as LLM-Adapters does (its Math10K holds rows that MAWPS tests).",
)


def instruct(
    ledger: Path = ledger_option,
    output: Path = typer.Option(Path("results/instruct"), "--output", "-o", help="Folder of the answers to judge."),
    data: Path | None = data_option,
    scale: str = scale_option,
    model: str | None = model_option,
    methods: str = methods_option,
    source: str = typer.Option("ultrafeedback", help="Instructions to learn from: ultrafeedback or alpaca."),
    rows: int | None = rows_option,
    questions: int | None = typer.Option(None, help="Prompts answered; at full scale all 805."),
    new_tokens: int | None = new_tokens_option,
    epochs: int | None = epochs_option,
    bf16: bool | None = bf16_option,
    seed: int = seed_option,
    budget: float | None = budget_option,
    json: bool = json_option,
) -> None:
    """Instruction following: answers to AlpacaEval's prompts, in the file that its judge reads."""
    from ..runs.instruction import INSTRUCT_METHODS, INSTRUCT_SCALES, run_instruct

    settings = changed_scale(
        INSTRUCT_SCALES, scale, model=model, rows=rows, questions=questions, epochs=epochs, new_tokens=new_tokens,
        bf16=bf16,
    )  # fmt: skip
    finished = Ledger(ledger)
    left = run_instruct(
        settings,
        finished,
        data=data,
        output=output,
        source=source,
        methods=split_list(methods, INSTRUCT_METHODS),
        seed=seed,
        budget=budget,
        progress=progress_to(json),
    )
    report_runs(finished, left, json)


def win_rate(
    annotations: Path = typer.Argument(help="The judge's file: annotations.json of alpaca_eval."),
    json: bool = json_option,
) -> None:
    """The win rate in what AlpacaEval's judge wrote about answers of `instruct`."""
    from ..scoring import alpaca

    entries = alpaca.read_annotations(annotations)
    found = {"win_rate": alpaca.win_rate(entries), "entries": len(entries)}
    typer.echo(jsonlib.dumps(found) if json else f"{100 * found['win_rate']:.2f} % of {found['entries']} entries")


def multimodal(
    ledger: Path = ledger_option,
    data: Path | None = typer.Option(
        None,
        help="At full scale: folder with multimodal/train.jsonl, gqa.jsonl, …; by default paper-data in the cache.",
    ),
    scale: str = typer.Option("small", help="small (a random LLaVA on noise), or full (LLaVA-1.5 on your pictures)."),
    model: str | None = typer.Option(None, help="At full scale: another LLaVA, by hub id or folder."),
    tasks: str = tasks_option,
    epochs: int | None = epochs_option,
    batch_size: int | None = typer.Option(None, help="At full scale: rows at a time; a step takes several."),
    learning_rate: float | None = typer.Option(None, min=0, help="At full scale: of every method."),
    bf16: bool | None = typer.Option(None, "--bf16/--no-bf16", help="At full scale: 16-bit arithmetic, the default."),
    seed: int = seed_option,
    budget: float | None = budget_option,
    json: bool = json_option,
) -> None:
    """LoRA, RoAd4, and RoAd1 with LoRA on a LLaVA's language part; at small scale shows that it runs, and nothing else."""
    from ..runs.multimodal import PretrainedLlava, RandomLlava, run_multimodal
    from ..scoring.visual_questions import PICTURE_TASKS

    given = {"model": model, "batch_size": batch_size, "learning_rate": learning_rate, "bf16": bf16}
    at_full_scale = {"data": data, **given}
    if scale == "small" and (extra := [name for name, value in at_full_scale.items() if value is not None]):
        raise RoadkitError(f"--{extra[0].replace('_', '-')} is for --scale full: the small one's model is random")
    settings = changed_scale({"small": RandomLlava(), "full": PretrainedLlava()}, scale, epochs=epochs, **given)
    finished = Ledger(ledger)
    left = run_multimodal(
        settings, finished, data=data, tasks=split_list(tasks, PICTURE_TASKS), seed=seed, budget=budget,
        progress=progress_to(json),
    )  # fmt: skip
    report_runs(finished, left, json)
