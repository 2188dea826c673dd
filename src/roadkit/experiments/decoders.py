"""Decoders tuned by any method, and their greedy answers.

    answers = Tuned.train(Settings(rows=64), "road_1", 3e-3, table, seed=0).answer(prompts, new_tokens=8)

A RoAd adapter answers through roadkit's engine as an adapter, beside base requests in one batch; other methods are merged
first. LoReFT, which edits hidden states and has nothing to merge, answers through transformers' `generate`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from .. import models
from ..adapter import Adapter, Base
from ..engine.engine import Engine
from ..engine.request import Request
from ..errors import RecipeError
from ..intervene.training import encode_rows, train_edits
from ..train.artifact import ROAD, to_adapter, trainable_tensors
from ..train.data import Table
from ..train.formats import ALPACA
from ..train.prepared import Prepared, load_base, prepare
from ..train.recipe import Recipe
from ..train.tuned import borrowed
from . import loreft
from .fit import fit
from .methods import find

BASE, LOREFT = "base", "loreft"  # methods of decoders alone: the one that tunes nothing, and LoReFT
LABELS = {BASE: BASE, LOREFT: f"LoReFT r={loreft.RANK}"}
# §C.2, and LoReFT's published rate; others: their second of METHODS
RATES = {BASE: 0.0, "road_1": 3e-3, "road_2": 3e-3, "road_4": 3e-3, "lora": 5e-4, LOREFT: 9e-4}
ADAPTER = "tuned"  # an adapter's name in the engine

Complete = Callable[[Sequence[str], int], list[str]]  # prompts, new tokens → greedy answers


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
    """What answers; `adapter` is the one that the engine registered, None where the method is elsewhere."""

    complete: Complete
    facts: dict[str, Any]
    adapter: Adapter | None = None

    @classmethod
    def train(cls, settings: Settings, method: str, learning_rate: float, table: Table, *, seed: int) -> Tuned:
        """Tune the base on rows of (instruction, output); `BASE` tunes nothing."""
        if method == BASE:
            dtype = "bfloat16" if settings.bf16 else "float32"
            model, tokenizer = models.load_causal(settings.model, dtype=dtype), models.load_tokenizer(settings.model)
            return cls(_served(model, tokenizer), {"trainable": 0})
        with tempfile.TemporaryDirectory() as folder:
            recipe = Recipe(
                model=settings.model, data=table.origin, output=str(Path(folder) / "adapter"), format="alpaca",
                chat_template=False, max_length=settings.max_length, group_size=settings.group_size,
                learning_rate=learning_rate, epochs=settings.epochs, batch_size=settings.batch_size,
                group_by_length=True, bf16=settings.bf16, seed=seed,
            )  # fmt: skip
            if method == LOREFT:
                return cls._train_loreft(recipe, table)
            return cls._train(method, prepare(recipe, table=table))

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
            return cls(_served(model, prepared.tokenizer), _facts(fitted))
        with borrowed(model):
            fitted = fit(model, method, recipe, **options)
            base = Base(models.canonical_name(recipe.model), models.config_fingerprint(model.config))
            adapter = to_adapter(trainable_tensors(fitted.model)[ROAD], fitted.model, base)  # type: ignore[arg-type]
        return cls(_served(model, prepared.tokenizer, adapter), _facts(fitted), adapter)

    @classmethod
    def _train_loreft(cls, recipe: Recipe, table: Table) -> Tuned:
        model, tokenizer = models.load_causal(recipe.model), models.load_tokenizer(recipe.model)
        torch.manual_seed(recipe.seed)
        edits = loreft.published(model)
        losses = train_edits(
            model, edits, encode_rows(recipe, tokenizer, task=loreft.TASK, table=table), tasks=[loreft.TASK],
            epochs=recipe.epochs, batch_size=recipe.batch_size, learning_rate=recipe.learning_rate, seed=recipe.seed,
        )  # fmt: skip
        trainable = sum(parameter.numel() for edit in edits.values() for parameter in edit.parameters())
        facts = {"trainable": trainable, "steps": len(losses), "train_loss": sum(losses) / len(losses)}

        def complete(prompts: Sequence[str], new_tokens: int) -> list[str]:
            return loreft.answer(model, tokenizer, edits, prompts, new_tokens=new_tokens)

        return cls(complete, facts)

    def answer(self, instructions: Sequence[str], *, new_tokens: int) -> list[str]:
        """Greedy answers, batched."""
        return self.complete([prompt_of(text) for text in instructions], new_tokens)


def label_of(method: str) -> str:
    """As in tables and messages. Raises `RecipeError` for an unknown method, as `rate_of` does."""
    return LABELS[method] if method in LABELS else find(method).label


def rate_of(method: str) -> float:
    """The learning rate that a method runs with; 0 for the base model."""
    return RATES[method] if method in RATES else find(method).rates_at("full", 1)[0]


def prompt_of(instruction: str) -> str:
    """The prompt that training used."""
    return ALPACA.format(paired="", instruction=instruction, input="")


def _served(model: Any, tokenizer: Any, adapter: Adapter | None = None) -> Complete:
    """Answers of an engine, all in one mixed batch."""
    model.eval().requires_grad_(False)
    adapters = {} if adapter is None else {ADAPTER: adapter}
    engine = Engine(model, tokenizer, adapters=adapters, max_batch=8, max_context=1024, cache_gib=0.5)

    def complete(prompts: Sequence[str], new_tokens: int) -> list[str]:
        name = ADAPTER if adapters else None
        requests = [Request(prompt=text, adapter=name, max_tokens=new_tokens) for text in prompts]
        return [completion.text for completion in engine.generate(requests)]

    return complete


def _facts(fitted: Any) -> dict[str, Any]:
    return {"trainable": fitted.trainable, "steps": fitted.steps, "train_loss": fitted.train_loss}
