"""`python -m paper glue`, `pilot`, `commonsense`, …: the paper's experiments, with one ledger for all of them."""

from __future__ import annotations

import dataclasses
import json as jsonlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from roadkit.errors import RoadkitError

LEDGER = Path("docs/data/experiments.jsonl")
SEEDS = {"small": 1, "full": 3}  # the paper's
ledger_option = typer.Option(LEDGER, "--ledger", "-l", help="Finished runs; those in it are not run again.")
data_option = typer.Option(Path("../shared/data"), help="Folder of the data sets (not used at full scale by glue).")
scale_option = typer.Option("small", help="small (the bundled models), or full (the paper's model and settings).")
model_option = typer.Option(None, help="Base model in place of the scale's: hub id, folder, minilm or smollm2.")
methods_option = typer.Option("", help="Methods, separated by commas; empty: all of the experiment.")
tasks_option = typer.Option("", help="Tasks, separated by commas; empty: all of the experiment.")
rows_option = typer.Option(None, help="Training rows in place of the scale's.")
epochs_option = typer.Option(None, help="Epochs in place of the scale's.")
validation_option = typer.Option(None, help="Validation rows in place of the scale's.")
test_option = typer.Option(None, help="Test rows in place of the scale's.")
bf16_option = typer.Option(None, "--bf16/--no-bf16", help="16-bit arithmetic in training and scoring, or the scale's.")
seed_option = typer.Option(0, help="Of the rows drawn, their order and new weights.")
budget_option = typer.Option(None, help="Processor minutes; runs that do not fit are left for the next call.")
json_option = typer.Option(False, "--json", help="Print one JSON object as the last line.")


def glue(
    ledger: Path = ledger_option,
    data: Path = data_option,
    scale: str = scale_option,
    model: str | None = model_option,
    methods: str = methods_option,
    tasks: str = tasks_option,
    rows: int | None = rows_option,
    epochs: int | None = epochs_option,
    batch_size: int | None = typer.Option(None, help="Rows a step in place of the scale's."),
    validation: int | None = validation_option,
    test: int | None = test_option,
    bf16: bool | None = bf16_option,
    seeds: int | None = typer.Option(
        None,
        min=1,
        help="The first searches learning rates, further ones rerun the best; by default 1, at full scale 3.",
    ),
    rates: int = typer.Option(4, min=1, max=4, help="Learning rates tried, the same number for every method."),
    presets: bool = typer.Option(False, help="No search: the paper's best settings of RoAd on RoBERTa (table C.3)."),
    search_epochs: int | None = typer.Option(
        None, help="Epochs of the runs that choose a learning rate; else as many as the others."
    ),
    grid: bool | None = typer.Option(
        None, "--grid/--no-grid", help="Search epochs and batch size too (table C.2); at full scale usual."
    ),
    head_learning_rate: float | None = typer.Option(
        None, min=0, help="Of the head (classifier and pooler) in place of the scale's; 0: the method's."
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
    from ..ledger import Ledger
    from ..runs import glue, recipes
    from ..tuning import encoders
    from ..tuning.methods import METHODS

    fixed = presets or choose_recipes or any(value is not None for value in (epochs, batch_size, search_epochs))
    if grid and fixed:
        raise RoadkitError("--grid searches epochs and batch sizes: leave out what fixes them, or --grid")
    if choose_recipes and (methods or presets):
        raise RoadkitError("--recipes chooses the methods: leave out --methods and --presets, or --recipes")
    settings = _settings(
        scale, encoders.SETTINGS, model=model, rows=rows, epochs=epochs, batch_size=batch_size,
        validation=validation, test=test, bf16=bf16, search_epochs=search_epochs,
        head_learning_rate=head_learning_rate, frozen_pooler=frozen_pooler,
    )  # fmt: skip
    settings = dataclasses.replace(settings, head_learning_rate=settings.head_learning_rate or None)
    found = Ledger(ledger)
    options: dict[str, Any] = {
        "data": _source(scale, data), "tasks": _list(tasks, glue.TASKS[scale]), "seeds": seeds or SEEDS[scale],
        "num_rates": rates,
        "output": output, "budget": budget, "progress": _say(json),
    }  # fmt: skip
    if choose_recipes:
        left = recipes.run(settings, found, **options)
    else:
        left = glue.run(
            settings,
            found,
            methods=_list(methods, [name for name in METHODS if name.startswith("road") or not presets]),
            presets=presets,
            grid=scale == "full" and not fixed if grid is None else grid,
            **options,
        )
    _done(found, left, json)


def pilot(
    ledger: Path = ledger_option,
    data: Path = data_option,
    scale: str = scale_option,
    model: str | None = model_option,
    methods: str = methods_option,
    tasks: str = tasks_option,
    rows: int | None = rows_option,
    epochs: int | None = typer.Option(None, help="Epochs of fine-tuning in place of the scale's (a classifier: 10)."),
    validation: int | None = validation_option,
    test: int | None = test_option,
    bf16: bool | None = typer.Option(None, "--bf16/--no-bf16", help="16-bit arithmetic in fine-tuning."),
    seed: int = seed_option,
    budget: float | None = budget_option,
    json: bool = json_option,
) -> None:
    """The pilot studies: how fine-tuning moves representations, and whether length or direction carries the answer."""
    from ..ledger import Ledger
    from ..runs import pilot
    from ..tuning import encoders

    settings = _settings(
        scale, encoders.SETTINGS, model=model, rows=rows, epochs=epochs,
        validation=validation, test=test, bf16=bf16,
    )  # fmt: skip
    found, source = Ledger(ledger), _source(scale, data)
    options: dict[str, Any] = {"data": source, "seed": seed, "budget": budget, "progress": _say(json)}
    left = pilot.displacements(settings, found, methods=_list(methods, pilot.MOVED), **options)
    left += pilot.disentangle(settings, found, tasks=_list(tasks, pilot.PROBED), **options)
    _done(found, left, json)


def _suite(name: str, text: str) -> Any:
    """The command of a suite of `reasoning`."""

    def command(
        ledger: Path = ledger_option,
        data: Path = data_option,
        scale: str = scale_option,
        model: str | None = model_option,
        methods: str = methods_option,
        tasks: str = tasks_option,
        rows: int | None = rows_option,
        questions: int | None = typer.Option(None, help="Questions of each task in place of the scale's."),
        new_tokens: int | None = typer.Option(None, help="Tokens an answer at most, in place of the scale's."),
        epochs: int | None = epochs_option,
        bf16: bool | None = bf16_option,
        learning_rate: float | None = typer.Option(None, min=0, help="Of every method, in place of its own."),
        rates: int | None = typer.Option(
            None,
            min=1,
            max=4,
            help="Choose each method's learning rate, of so many around its own, in short runs first.",
        ),
        search_rows: int | None = typer.Option(None, min=1, help="Training rows of these runs, by default 500."),
        held_out: int | None = typer.Option(
            None, min=1, help="Training rows of each task that score them, and no run is shown; by default 75."
        ),
        every_epoch: bool | None = typer.Option(
            None, "--every-epoch/--last-epoch", help="Score after each epoch and report the best; at full scale usual."
        ),
        seed: int = seed_option,
        seeds: int | None = typer.Option(None, min=1, help="From --seed on; by default 1, at full scale 3."),
        budget: float | None = budget_option,
        json: bool = json_option,
    ) -> None:
        from ..ledger import Ledger
        from ..runs import reasoning

        settings = _settings(
            scale, reasoning.SETTINGS[name], model=model, rows=rows, questions=questions, epochs=epochs,
            new_tokens=new_tokens, bf16=bf16,
        )  # fmt: skip
        given = {"rates": rates, "rows": search_rows, "held_out": held_out}
        given = {field: value for field, value in given.items() if value is not None}
        if given and rates is None:
            raise RoadkitError("--search-rows and --held-out are for a search of learning rates: --rates 3 makes one")
        found = Ledger(ledger)
        left = reasoning.run(
            name,
            settings,
            found,
            data=data,
            methods=_list(methods, reasoning.METHODS_RUN),
            tasks=_list(tasks, ()),
            learning_rate=learning_rate,
            search=reasoning.Search(**given) if given else None,
            seeds=range(seed, seed + (seeds or SEEDS[scale])),
            every_epoch=scale == "full" if every_epoch is None else every_epoch,
            budget=budget,
            progress=_say(json),
        )
        _done(found, left, json)

    command.__name__, command.__doc__ = name, text
    return command


commonsense = _suite("commonsense", "Eight commonsense tasks, one model for all, answers scored as LLM-Adapters does.")
arithmetic = _suite(
    "arithmetic",
    "AQuA, GSM8K, MAWPS and SVAMP, answers scored as LLM-Adapters does (its Math10K holds rows that MAWPS tests).",
)


def instruct(
    ledger: Path = ledger_option,
    output: Path = typer.Option(Path("results/instruct"), "--output", "-o", help="Folder of the answers to judge."),
    data: Path = data_option,
    scale: str = scale_option,
    model: str | None = model_option,
    methods: str = methods_option,
    source: str = typer.Option("ultrafeedback", help="Instructions to learn from: ultrafeedback or alpaca."),
    rows: int | None = rows_option,
    questions: int | None = typer.Option(None, help="Prompts answered; at full scale all 805."),
    new_tokens: int | None = typer.Option(None, help="Tokens an answer at most, in place of the scale's."),
    epochs: int | None = epochs_option,
    bf16: bool | None = bf16_option,
    seed: int = seed_option,
    budget: float | None = budget_option,
    json: bool = json_option,
) -> None:
    """Instruction following: answers to AlpacaEval's prompts, in the file that its judge reads."""
    from ..ledger import Ledger
    from ..runs import instruction

    settings = _settings(
        scale, instruction.SETTINGS, model=model, rows=rows, questions=questions, epochs=epochs,
        new_tokens=new_tokens, bf16=bf16,
    )  # fmt: skip
    found = Ledger(ledger)
    left = instruction.run(
        settings,
        found,
        data=data,
        output=output,
        source=source,
        methods=_list(methods, instruction.METHODS_RUN),
        seed=seed,
        budget=budget,
        progress=_say(json),
    )
    _done(found, left, json)


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
    data: Path = typer.Option(Path("data"), help="At full scale: folder with multimodal/train.jsonl, gqa.jsonl, …"),
    scale: str = typer.Option("small", help="small (a random LLaVA on noise), or full (LLaVA-1.5 on your pictures)."),
    model: str | None = typer.Option(None, help="At full scale: another LLaVA, by hub id or folder."),
    tasks: str = tasks_option,
    epochs: int | None = epochs_option,
    batch_size: int | None = typer.Option(None, help="At full scale: rows at a time; a step takes several."),
    learning_rate: float | None = typer.Option(None, min=0, help="At full scale: of every arm."),
    bf16: bool | None = typer.Option(None, "--bf16/--no-bf16", help="At full scale: 16-bit arithmetic; usual."),
    seed: int = seed_option,
    budget: float | None = budget_option,
    json: bool = json_option,
) -> None:
    """LoRA, RoAd4, and RoAd1 with LoRA on a LLaVA's language part; at small scale shows that it runs, and nothing else."""
    from ..ledger import Ledger
    from ..runs import multimodal

    given = {"model": model, "batch_size": batch_size, "learning_rate": learning_rate, "bf16": bf16}
    if scale == "small" and (extra := [name for name, value in given.items() if value is not None]):
        raise RoadkitError(f"--{extra[0].replace('_', '-')} is for --scale full: the small one's model is random")
    scales = {"small": multimodal.Settings(), "full": multimodal.FULL}
    settings = _settings(scale, scales, epochs=epochs, **given)
    found = Ledger(ledger)
    left = multimodal.run(
        found, settings=settings, data=data if scale == "full" else None, tasks=_list(tasks, multimodal.TASKS), seed=seed,
        budget=budget, progress=_say(json),
    )  # fmt: skip
    _done(found, left, json)


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
    from ..ledger import Ledger
    from ..runs import efficiency

    found = Ledger(ledger)
    efficiency.run(
        found, names=_list(benches, efficiency.SHOWS), rounds=rounds, device=device, seed=seed, progress=_say(json)
    )
    _done(found, 0, json)


def size(
    ledger: Path = ledger_option,
    rounds: int = typer.Option(9, min=1, help="Of each timing."),
    seed: int = typer.Option(0, help="A new number times again."),
    budget: float | None = budget_option,
    json: bool = json_option,
) -> None:
    """Trainable parameters at the shapes of published models, and the time of a step on small random ones."""
    from ..ledger import Ledger
    from ..runs import size

    _quiet()
    found = Ledger(ledger)
    left = size.run(found, step=size.Step(rounds=rounds), seed=seed, budget=budget, progress=_say(json))
    _done(found, left, json)


COMMANDS = (pilot, glue, commonsense, arithmetic, instruct, win_rate, multimodal, efficiency, size)


def _settings(scale: str, settings: Mapping[str, Any], **changes: Any) -> Any:
    if scale not in settings:
        raise RoadkitError(f"scale must be 'small' or 'full', got {scale!r}")
    _quiet()
    given = {key: value for key, value in changes.items() if value is not None}
    return dataclasses.replace(settings[scale], **given)


def _source(scale: str, data: Path) -> Path | None:
    return data if scale == "small" else None


def _list(text: str, default: Any) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip()) or tuple(default)


def _quiet() -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _say(json: bool) -> Any:
    return lambda line: typer.echo(line, err=json)


def _done(ledger: Any, left: int, json: bool) -> None:
    if json:
        typer.echo(jsonlib.dumps({"ledger": str(ledger.path), "runs": len(ledger.rows()), "left": left}))
