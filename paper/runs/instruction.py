"""Instruction following (table 5): tuned on instructions, answers to AlpacaEval's prompts in the file its judge reads.

    run(Settings(rows=32), Ledger(path), data=Path("../shared/data"), output=Path("results/instruct"))

The judge needs an API and is not run here; the ledger holds what can be said without it. Answers go to
`output`/METHOD-SEED-KEY.json, for `alpaca_eval --model_outputs FILE`; KEY is the ledger row's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from roadkit.errors import RecipeError
from roadkit.train.data.tables import Table, read_table

from ..ledger import Ledger, run_key
from ..scoring.alpaca import write_outputs
from ..scoring.files import find_rows
from ..scoring.glue import sample_rows
from ..tuning.decoders import BASE, FULL, LOREFT, Settings, Tuned, label_of, rate_of
from ..tuning.tasks import ULTRAFEEDBACK, pair_of
from .jobs import Job, log, run_jobs

METHODS_RUN = (BASE, "road_1", "lora", LOREFT)
SOURCES = {"ultrafeedback": "ultrafeedback_1k", "alpaca": "alpaca_libre"}  # small scale: files
HUB = {"ultrafeedback": (ULTRAFEEDBACK, None), "alpaca": ("yahma/alpaca-cleaned", 10_000)}  # full; rows as table 5 says
SETTINGS = {
    "small": dataclasses.replace(Settings(), new_tokens=128),
    "full": dataclasses.replace(  # LoReFT's (pyreft, examples/loreft/README.md), for every method
        FULL, model="meta-llama/Llama-2-7b-hf", epochs=9, batch_size=4, gradient_accumulation=32, max_length=768,
        new_tokens=2048,
    ),
}  # fmt: skip
PROMPTS = "alpaca_eval_805"


def run(
    settings: Settings,
    ledger: Ledger,
    *,
    data: Path,
    output: Path,
    source: str = "ultrafeedback",
    methods: Sequence[str] = METHODS_RUN,
    seed: int = 0,
    budget: float | None = None,
    progress: Callable[[str], None] = log.info,
) -> int:
    """Do the runs that the ledger or `output` lacks; → how many the budget left out."""
    if source not in SOURCES:
        raise RecipeError(f"no instruction data {source!r}; there are {', '.join(SOURCES)}")

    def jobs() -> Iterator[Job]:
        for method in methods:
            recipe = {
                "experiment": "instruct",
                **dataclasses.asdict(settings),
                "source": source,
                "method": method,
                "learning_rate": rate_of(method),
            }
            path = output / f"{method}-{seed}-{run_key(recipe, seed)[:8]}.json"
            compute = partial(_compute, settings, data, path, source, method, seed, progress)
            yield Job(f"instruct, {label_of(method)}", recipe, seed, compute, writes=path)

    return run_jobs(jobs(), ledger, budget=budget, progress=progress)


def training_rows(source: str, data: Path, settings: Settings, *, seed: int) -> Table:
    """Rows with instruction, input and output: a file's at small scale, else the hub's."""
    if settings.scale == "small":
        return sample_rows(find_rows(data / "instruct", SOURCES[source]), settings.rows, seed=seed)
    name, usual = HUB[source]
    table = sample_rows(read_table(name), settings.rows or usual, seed=seed)
    pairs = [(row, pair_of(row, "instruct")) for row in table.rows]
    rows = [
        {"instruction": pair["prompt"], "input": row.get("input") or "", "output": pair["completion"]} for row, pair in pairs
    ]  # fmt: skip
    return Table(rows, table.numbers, table.origin)


def _compute(
    settings: Settings, data: Path, path: Path, source: str, method: str, seed: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    table = training_rows(source, data, settings, seed=seed)
    prompts = sample_rows(find_rows(data / "instruct", PROMPTS), settings.questions, seed=0)
    tuned = Tuned.train(settings, method, rate_of(method), table, seed=seed)
    answers = tuned.answer([row["instruction"] for row in prompts.rows], new_tokens=settings.new_tokens)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_outputs(path, prompts.rows, answers, generator=f"roadkit-{method}")
    progress(f"answers: {path}")
    words = [len(answer.split()) for answer in answers]
    return {
        "answers": len(answers),
        "empty": sum(count == 0 for count in words),
        "words": sum(words) / len(words),
        **tuned.facts,
    }
