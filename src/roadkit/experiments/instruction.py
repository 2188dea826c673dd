"""Instruction following (table 5): tuned on instructions, answers to AlpacaEval's prompts in the file its judge reads.

    run(Settings(rows=32), Ledger(path), data=Path("../shared/data"), output=Path("results/instruct"))

The judge needs an API and is not run here; the ledger holds what can be said without it. Answers go to
`output`/METHOD-SEED.json, for `alpaca_eval --model_outputs FILE`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..evaluate.alpaca import write_outputs
from ..evaluate.files import find_rows
from ..evaluate.glue import sample_rows
from .decoders import BASE, FULL, LOREFT, Settings, Tuned, label_of, rate_of
from .jobs import Job, log, run_jobs
from .ledger import Ledger

METHODS_RUN = (BASE, "road_1", "lora", LOREFT)
SOURCES = {"ultrafeedback": "ultrafeedback_1k", "alpaca": "alpaca_libre"}
SETTINGS = {
    scale: dataclasses.replace(settings, new_tokens=128) for scale, settings in (("small", Settings()), ("full", FULL))
}
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
    """Do the runs that the ledger lacks; → how many the budget left out."""
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
            yield Job(
                f"instruct, {label_of(method)}",
                recipe,
                seed,
                partial(_compute, settings, data, output, source, method, seed),
            )

    return run_jobs(jobs(), ledger, budget=budget, progress=progress)


def _compute(settings: Settings, data: Path, output: Path, source: str, method: str, seed: int) -> dict[str, Any]:
    table = sample_rows(find_rows(data / "instruct", SOURCES[source]), settings.rows, seed=seed)
    prompts = sample_rows(find_rows(data / "instruct", PROMPTS), settings.questions, seed=0)
    tuned = Tuned.train(settings, method, rate_of(method), table, seed=seed)
    answers = tuned.answer([row["instruction"] for row in prompts.rows], new_tokens=settings.new_tokens)
    output.mkdir(parents=True, exist_ok=True)
    write_outputs(output / f"{method}-{seed}.json", prompts.rows, answers, generator=f"roadkit-{method}")
    words = [len(answer.split()) for answer in answers]
    return {
        "answers": len(answers),
        "empty": sum(count == 0 for count in words),
        "words": sum(words) / len(words),
        **tuned.facts,
    }
