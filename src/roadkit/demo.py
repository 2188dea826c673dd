"""The demonstration: train four adapters on a real model, answer eight requests with them in one batch.

train_missing("smollm2", Path("adapters"), watch=lambda name: nullcontext(print))
answers(engine, "What is the capital of Italy?")      # `roadkit demo` prints them side by side
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from .engine.engine import Engine
from .engine.request import Completion, Request
from .errors import AdapterError
from .store import load
from .train.progress import Progress

ADAPTERS = ("json", "pirate", "formal", "brief")
EXPRESSIONS = (None, *ADAPTERS, "formal*0.5", "pirate*1.2", "pirate*0.7 + brief*0.6")
QUESTIONS = ("What is the capital of Italy?", "Why is the sky blue?", "How do I make tea?")
TRAINING = {"epochs": 3, "batch_size": 6, "learning_rate": 5e-3, "seed": 0}


@dataclass(frozen=True)
class Answer:
    """What one expression answered; None is the base model."""

    expression: str | None
    completion: Completion


@dataclass(frozen=True)
class Speed:
    """Tokens per second of the same eight requests, medians.

    plain       by the plain model, in one batch
    mixed       each with another adapter, in one batch
    one_by_one  each with another adapter, one after another
    """

    plain: float
    mixed: float
    one_by_one: float


def train_missing(model: str, folder: Path, *, watch: Callable[[str], AbstractContextManager[Progress]]) -> list[str]:
    """Train those of the four adapters that `folder` does not hold yet, and return their names.

    watch  called with a name before each training; the context is left afterwards, and what it gives is called after
           every step
    """
    missing = [name for name in ADAPTERS if not _usable(folder / name)]
    if not missing:
        return []
    from . import models
    from .train import Recipe, run

    base, tokenizer = models.load_causal(model, device=models.best_device()), models.load_tokenizer(model)
    data = files("roadkit") / "data" / "demo"
    for name in missing:
        recipe = Recipe(model=model, data=str(data / f"{name}.jsonl"), output=str(folder / name), **TRAINING)
        with watch(name) as progress:
            run(recipe, model=base, tokenizer=tokenizer, progress=progress)
    return missing


def answers(engine: Engine, question: str, *, max_tokens: int = 48) -> list[Answer]:
    """The question, answered under every expression in one batch."""
    completions = engine.generate([_request(question, expression, max_tokens) for expression in EXPRESSIONS])
    return [Answer(expression, completion) for expression, completion in zip(EXPRESSIONS, completions, strict=True)]


def speed(engine: Engine, plain: Engine, *, rounds: int = 3, tokens: int = 48) -> Speed:
    """Measure eight requests in three ways. `plain` is an engine of the same model that knows no adapters."""
    prompts = [f"{question} Answer as number {i}." for i, question in enumerate(QUESTIONS * 3)][: len(EXPRESSIONS)]
    expressions = [*EXPRESSIONS[1:], "brief*0.5"]  # eight different rows, none of them the base

    def requests(names: Sequence[str | None]) -> list[Request]:
        pairs = zip(prompts, names, strict=True)
        return [_request(prompt, name, tokens, ignore_eos=True) for prompt, name in pairs]

    mixed, base = requests(expressions), requests([None] * len(expressions))
    engine.generate(mixed)
    plain.generate(base)
    rates: dict[str, list[float]] = {"plain": [], "mixed": [], "one_by_one": []}
    for _ in range(rounds):
        rates["plain"].append(_rate(lambda: plain.generate(base)))
        rates["mixed"].append(_rate(lambda: engine.generate(mixed)))
    rates["one_by_one"].append(_rate(lambda: [engine.generate([request])[0] for request in mixed]))
    return Speed(**{name: statistics.median(values) for name, values in rates.items()})


def _request(question: str, expression: str | None, tokens: int, **options: Any) -> Request:
    return Request(prompt=[{"role": "user", "content": question}], adapter=expression, max_tokens=tokens, **options)


def _rate(call: Callable[[], list[Completion]]) -> float:
    start = time.perf_counter()
    count = sum(len(completion.token_ids) for completion in call())
    return count / (time.perf_counter() - start)


def _usable(path: Path) -> bool:
    if not path.is_dir():  # the hub would be asked for a name such as adapters/json
        return False
    try:
        load(path)
    except AdapterError:
        return False
    return True
