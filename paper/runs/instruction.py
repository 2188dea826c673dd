"""Instruction following (table 5): trained on instructions, answers to AlpacaEval's prompts in the file its judge reads.

    run_instruct(DecoderSettings(rows=32), Ledger(path), data=None, output=Path("results/instruct"))

The judge needs an API and is not run here; the ledger holds what can be said without it. Answers go to
`output`/METHOD-SEED-KEY.json, for `alpaca_eval --model_outputs FILE`; KEY begins the ledger row's key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from roadkit.errors import RecipeError
from roadkit.train.data.tables import Table

from ..data import check_rows, read_rows, sample_rows
from ..ledger import Ledger, run_key
from ..scoring.alpaca import write_outputs
from ..tuning.decoders import BASE, DECODER_SCALES, LOREFT, DecoderSettings, TunedDecoder, decoder_label, rate_of
from .jobs import Job, log, run_jobs

INSTRUCT_METHODS = (BASE, "road_1", "lora", LOREFT)
SOURCES = {  # --source → scale → the name of its rows
    "ultrafeedback": {"small": "instruct/ultrafeedback_1k", "full": "instruct/ultrafeedback"},
    "alpaca": {"small": "instruct/alpaca_libre", "full": "instruct/alpaca_cleaned"},
}
FULL_ROWS = {"ultrafeedback": None, "alpaca": 10_000}  # of the full scale, as table 5 says; None: all
INSTRUCT_SCALES = {
    "small": dataclasses.replace(DECODER_SCALES["small"], new_tokens=128),
    "full": dataclasses.replace(  # LoReFT's (pyreft, examples/loreft/README.md), for every method
        DECODER_SCALES["full"], model="meta-llama/Llama-2-7b-hf", epochs=9, batch_size=4, gradient_accumulation=32,
        max_length=768, new_tokens=2048,
    ),
}  # fmt: skip
PROMPTS = "instruct/alpaca_eval_805"


def run_instruct(
    settings: DecoderSettings,
    ledger: Ledger,
    *,
    data: Path | None,
    output: Path,
    source: str = "ultrafeedback",
    methods: Sequence[str] = INSTRUCT_METHODS,
    seed: int = 0,
    budget: float | None = None,
    progress: Callable[[str], None] = log.info,
) -> int:
    """Do the runs that the ledger or `output` lacks; → how many the budget left out.

    data     the folder of `read_rows`
    output   the folder of the answers
    source   the instructions to learn from, one of `SOURCES`
    """
    if source not in SOURCES:
        raise RecipeError(f"no instruction data {source!r}; there are {', '.join(SOURCES)}")

    def jobs() -> Iterator[Job]:
        for method in methods:
            setup = {
                "experiment": "instruct",
                **dataclasses.asdict(settings),
                "source": source,
                "method": method,
                "learning_rate": rate_of(method),
            }
            path = output / f"{method}-{seed}-{run_key(setup, seed)[:8]}.json"
            compute = partial(_compute, settings, data, path, source, method, seed, progress)
            yield Job(f"instruct, {decoder_label(method)}", setup, seed, compute, writes=path)

    return run_jobs(jobs(), ledger, budget=budget, progress=progress)


def instructions_to_learn(source: str, data: Path | None, settings: DecoderSettings, *, seed: int) -> Table:
    """Rows with instruction, input and output, drawn by the seed."""
    (table,) = read_rows(data, SOURCES[source][settings.scale])
    usual = FULL_ROWS[source] if settings.scale == "full" else None
    return sample_rows(table, settings.rows or usual, seed=seed)


def _compute(
    settings: DecoderSettings,
    data: Path | None,
    path: Path,
    source: str,
    method: str,
    seed: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    check_rows(data, SOURCES[source][settings.scale], PROMPTS)
    table = instructions_to_learn(source, data, settings, seed=seed)
    prompts = sample_rows(read_rows(data, PROMPTS)[0], settings.questions, seed=0)
    tuned = TunedDecoder.train(settings, method, rate_of(method), table, seed=seed)
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
