"""Decoders tuned by any method, and their greedy answers through roadkit's engine.

    answers = Tuned.train(Settings(rows=64), "road_1", 3e-3, table, seed=0).answer(prompts, new_tokens=8)

A RoAd adapter answers as an adapter, beside base requests in one batch; other methods are merged first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from .. import models
from ..adapter import Adapter, Base
from ..engine.engine import Engine
from ..engine.request import Request
from ..errors import RecipeError
from ..train.artifact import ROAD, to_adapter, trainable_tensors
from ..train.data import Table
from ..train.formats import ALPACA
from ..train.prepared import Prepared, load_base, prepare
from ..train.recipe import Recipe
from ..train.tuned import borrowed
from .fit import fit

BASE, ADAPTER = "base", "tuned"  # the method that tunes nothing; an adapter's name in the engine


@dataclass(frozen=True)
class Settings:
    """What the runs of one experiment share.

    rows, questions   training rows; questions of each task
    bf16              16-bit weights and autocast in training, 16-bit weights in the engine; adapters stay float32
    """

    scale: str = "small"
    model: str = "smollm2"
    rows: int = 64
    questions: int | None = 8
    epochs: int = 2
    batch_size: int = 4
    max_length: int = 256
    new_tokens: int = 8
    group_size: int = 64
    bf16: bool = False


FULL = Settings(
    "full", "huggyllama/llama-7b", 170_000, None, 6, 32, 512, 32, 2
)  # commonsense: §C.2, learning rate 3e-3


@dataclass(frozen=True)
class Tuned:
    """An engine that answers; `adapter` is what it registered, None where the method is in the weights."""

    engine: Engine
    adapter: Adapter | None
    facts: dict[str, Any]

    @classmethod
    def train(cls, settings: Settings, method: str, learning_rate: float, table: Table, *, seed: int) -> Tuned:
        """Tune the base on rows of (instruction, output); `BASE` tunes nothing."""
        if method == BASE:
            dtype = "bfloat16" if settings.bf16 else "float32"
            model, tokenizer = models.load_causal(settings.model, dtype=dtype), models.load_tokenizer(settings.model)
            return cls(_engine(model, tokenizer, {}), None, {"trainable": 0})
        with tempfile.TemporaryDirectory() as folder:
            recipe = Recipe(
                model=settings.model, data=table.origin, output=str(Path(folder) / "adapter"), format="alpaca",
                chat_template=False, max_length=settings.max_length, group_size=settings.group_size,
                learning_rate=learning_rate, epochs=settings.epochs, batch_size=settings.batch_size,
                group_by_length=True, bf16=settings.bf16, seed=seed,
            )  # fmt: skip
            prepared = prepare(recipe, table=table)
            return cls._train(method, prepared)

    @classmethod
    def _train(cls, method: str, prepared: Prepared) -> Tuned:
        model, recipe = load_base(prepared), prepared.recipe
        options = {"tokenizer": prepared.tokenizer, "train": prepared.train.examples}
        if method == "prefix":
            raise RecipeError("prefix tuning cannot be merged, and the engine has no prefixes: choose another method")
        if not method.startswith("road"):
            fitted = fit(model, method, recipe, **options)
            merge = isinstance(fitted.model, PeftModel)
            model = fitted.model.merge_and_unload() if merge else fitted.model  # type: ignore[operator]
            return cls(_engine(model, prepared.tokenizer, {}), None, _facts(fitted))
        with borrowed(model):
            fitted = fit(model, method, recipe, **options)
            base = Base(models.canonical_name(recipe.model), models.config_fingerprint(model.config))
            adapter = to_adapter(trainable_tensors(fitted.model)[ROAD], fitted.model, base)  # type: ignore[arg-type]
        return cls(_engine(model, prepared.tokenizer, {ADAPTER: adapter}), adapter, _facts(fitted))

    def answer(self, instructions: Sequence[str], *, new_tokens: int) -> list[str]:
        """Greedy answers, all in one mixed batch."""
        name = ADAPTER if self.adapter else None
        requests = [Request(prompt=prompt_of(text), adapter=name, max_tokens=new_tokens) for text in instructions]
        return [completion.text for completion in self.engine.generate(requests)]


def prompt_of(instruction: str) -> str:
    """The prompt that training used."""
    return ALPACA.format(paired="", instruction=instruction, input="")


def _engine(model: Any, tokenizer: Any, adapters: dict[str, Any]) -> Engine:
    model.eval().requires_grad_(False)
    return Engine(model, tokenizer, adapters=adapters, max_batch=8, max_context=1024, cache_gib=0.5)


def _facts(fitted: Any) -> dict[str, Any]:
    return {"trainable": fitted.trainable, "steps": fitted.steps, "train_loss": fitted.train_loss}
