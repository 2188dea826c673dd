"""Decoders trained by any method, and their greedy answers.

    tuned = TunedDecoder.train(DecoderSettings(rows=64), "road_1", 3e-3, table, seed=0)
    texts = tuned.answer(["Name three colours."], new_tokens=8)

A RoAd adapter answers through roadkit's engine, as an adapter. Other methods are merged into the base first. LoReFT and
prefix tuning have nothing to merge; they answer through transformers' `generate`.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from roadkit import models
from roadkit.adapter import Adapter, Base
from roadkit.engine.engine import Engine
from roadkit.engine.request import Request
from roadkit.errors import RecipeError
from roadkit.intervene.training import encode_rows, train_edits
from roadkit.train.data.formats import ALPACA
from roadkit.train.data.tables import Table
from roadkit.train.data.training_data import TrainingData, prepare_data
from roadkit.train.model.base import load_base
from roadkit.train.model.borrowed import borrowed
from roadkit.train.output.directory import ROAD
from roadkit.train.output.tensors import to_adapter, trainable_tensors
from roadkit.train.recipe import Recipe

from . import generation, loreft
from .fit import Fitted, fit_method, put_back, snapshot
from .methods import find_method

BASE, LOREFT = "base", "loreft"  # methods for decoders alone: the one that trains nothing, and LoReFT
DECODER_LABELS = {BASE: BASE, LOREFT: "LoReFT"}
# §C.2, and LoReFT's published rate; any other method has the second of its own rates
DECODER_RATES = {BASE: 0.0, "road_1": 3e-3, "road_2": 3e-3, "road_4": 3e-3, "lora": 5e-4, LOREFT: 9e-4}
ADAPTER = "tuned"  # begins an adapter's name in the engine
CACHE_GIB = {"cpu": 0.5, "cuda": 8.0}  # 16 thousand tokens of LLaMA-7B in 16 bits

Complete = Callable[[Sequence[str], int], list[str]]  # prompts, new tokens → greedy answers


@dataclass(frozen=True)
class DecoderSettings:
    """What an experiment's runs on a decoder share.

    rows, questions         training rows, and questions of each task; None takes all
    gradient_accumulation   batches that make a step; None is one
    bf16                    16-bit weights and autocast in training, and 16-bit weights in the engine. Adapters stay
                            float32, and so does everything of LoReFT
    """

    scale: str = "small"
    model: str = "smollm2"
    rows: int | None = 64
    questions: int | None = 8
    epochs: int = 2
    batch_size: int = 4
    max_length: int = 256
    new_tokens: int = 8
    group_size: int = 64
    bf16: bool = False
    gradient_accumulation: int | None = None


DECODER_SCALES = {
    "small": DecoderSettings(),
    "full": DecoderSettings(  # commonsense, §C.2; 16 bits, to judge by the paper's 23 GB for LLaMA-7B in table D.1
        "full", "huggyllama/llama-7b", rows=None, questions=None, epochs=6, batch_size=32, max_length=512, new_tokens=32,
        group_size=2, bf16=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class TunedDecoder:
    """A trained decoder that answers as it was after its last epoch, or after any one.

    epochs    one `Complete` for each epoch that was kept, in order; the last is the trained model
    facts     what training cost: trainable, steps, train_loss
    adapter   the last epoch's, if the method is RoAd
    """

    epochs: Sequence[Complete]
    facts: dict[str, Any]
    adapter: Adapter | None = None

    @classmethod
    def train(
        cls,
        settings: DecoderSettings,
        method: str,
        learning_rate: float,
        table: Table,
        *,
        seed: int,
        every_epoch: bool = False,
        edits: loreft.LoreftSettings = loreft.LOREFT_INSTRUCT,
    ) -> TunedDecoder:
        """Train the base model on rows with instruction and output. The method `BASE` trains nothing.

        every_epoch   keep every epoch; LoReFT and prefix tuning cannot, and raise `RecipeError`
        edits         LoReFT's settings
        """
        if method == BASE:
            dtype = "bfloat16" if settings.bf16 else "float32"
            model = models.load_causal(settings.model, dtype=dtype, device=models.best_device())
            tokenizer = models.load_tokenizer(settings.model)
            return cls(_served(model, tokenizer), {"trainable": 0})
        with tempfile.TemporaryDirectory() as folder:
            recipe = Recipe(
                model=settings.model, data=table.origin, output=str(Path(folder) / "adapter"), format="alpaca",
                chat_template=False, max_length=settings.max_length, group_size=settings.group_size,
                learning_rate=learning_rate, epochs=settings.epochs, batch_size=settings.batch_size,
                group_by_length=True, bf16=settings.bf16, seed=seed,
                gradient_accumulation=settings.gradient_accumulation or 1,
            )  # fmt: skip
            if method == LOREFT:
                if every_epoch:
                    raise RecipeError("LoReFT keeps its last epoch only: run it with --last-epoch")
                return cls._train_loreft(recipe, table, edits)
            return cls._train(method, prepare_data(recipe, table=table), every_epoch)

    @classmethod
    def _train(cls, method: str, prepared: TrainingData, every_epoch: bool) -> TunedDecoder:
        model = load_base(prepared, device=models.best_device())
        recipe, tokenizer = prepared.recipe, prepared.tokenizer
        options: dict[str, Any] = {"tokenizer": tokenizer, "train": prepared.train.examples}
        kept: list[Any] = []
        if method == "prefix":  # nothing to merge, and the engine has no prefixes
            if every_epoch:
                raise RecipeError("prefix tuning keeps its last epoch only: run it with --last-epoch")
            fitted = fit_method(model, method, recipe, **options)
            return cls([partial(generation.answer_greedily, fitted.model.eval(), tokenizer)], _facts(fitted))
        if not method.startswith("road"):
            keep = (lambda tuned: kept.append(snapshot(tuned))) if every_epoch else None
            fitted = fit_method(model, method, recipe, **options, after_epoch=keep)
            epochs = [partial(_complete_at, prepared, method, tensors) for tensors in kept]
            return cls(epochs or _served(_merged(fitted.model), tokenizer), _facts(fitted))
        base = Base(models.canonical_name(recipe.model), models.config_fingerprint(model.config))

        def adapter_of(tuned: Any) -> Adapter:
            return to_adapter(trainable_tensors(tuned)[ROAD], tuned, base)

        with borrowed(model):
            keep = (lambda tuned: kept.append(adapter_of(tuned))) if every_epoch else None
            fitted = fit_method(model, method, recipe, **options, after_epoch=keep)
            adapters = kept or [adapter_of(fitted.model)]
        return cls(_served(model, tokenizer, adapters), _facts(fitted), adapters[-1])

    @classmethod
    def _train_loreft(cls, recipe: Recipe, table: Table, settings: loreft.LoreftSettings) -> TunedDecoder:
        model = models.load_causal(recipe.model, device=models.best_device())
        tokenizer = models.load_tokenizer(recipe.model)
        torch.manual_seed(recipe.seed)
        edits = loreft.published_edits(model, settings)
        losses = train_edits(
            model, edits, encode_rows(recipe, tokenizer, task=loreft.TASK, table=table), tasks=[loreft.TASK],
            epochs=recipe.epochs, batch_size=recipe.batch_size * recipe.gradient_accumulation,
            at_once=recipe.batch_size, learning_rate=recipe.learning_rate, seed=recipe.seed,
        )  # fmt: skip
        trainable = sum(parameter.numel() for parameter in nn.ModuleList(edits.values()).parameters())
        facts = {"trainable": trainable, "steps": len(losses), "train_loss": sum(losses) / len(losses)}
        return cls([partial(loreft.answer_with_edits, model, tokenizer, edits)], facts)

    def answer(self, instructions: Sequence[str], *, new_tokens: int, epoch: int = -1) -> list[str]:
        """Greedy answers of the model as it was after an epoch."""
        return self.epochs[epoch]([prompt_of(text) for text in instructions], new_tokens)


def decoder_label(method: str) -> str:
    """A method's name in messages. Raises `RecipeError` for an unknown method, as `rate_of` does."""
    return DECODER_LABELS[method] if method in DECODER_LABELS else find_method(method).label


def rate_of(method: str) -> float:
    """The learning rate that a method runs with; 0 for the base model."""
    return DECODER_RATES[method] if method in DECODER_RATES else find_method(method).rates_at("full", 1)[0]


def prompt_of(instruction: str) -> str:
    """An instruction as the prompt that training used."""
    return ALPACA.format(paired="", instruction=instruction, input="")


def _served(model: Any, tokenizer: Any, adapters: Sequence[Adapter] = ()) -> list[Complete]:
    """One engine that answers with each of the adapters; without adapters, as the model itself."""
    model.eval().requires_grad_(False)
    named = {f"{ADAPTER}-{i}": adapter for i, adapter in enumerate(adapters)}
    engine = Engine(model, tokenizer, adapters=named, max_batch=8, cache_gib=CACHE_GIB[model.device.type])
    return [partial(_complete, engine, name) for name in named or (None,)]


def _complete(engine: Engine, adapter: str | None, prompts: Sequence[str], new_tokens: int) -> list[str]:
    requests = [Request(prompt=text, adapter=adapter, max_tokens=new_tokens) for text in prompts]
    completions = engine.generate(requests)
    if failed := next((completion.error for completion in completions if completion.error), None):
        raise RecipeError(f"a question was not answered: {failed}")
    return [completion.text for completion in completions]


def _complete_at(
    prepared: TrainingData, method: str, tensors: Mapping[str, Tensor], prompts: Sequence[str], new_tokens: int
) -> list[str]:
    """Answers of the model as it was after an earlier epoch, built and merged anew."""
    gc.collect()  # frees the last epoch's engine and model now: they hold each other
    model = find_method(method).tune(load_base(prepared, device=models.best_device()), prepared.recipe)
    put_back(model, tensors)
    (complete,) = _served(_merged(model), prepared.tokenizer)
    return complete(prompts, new_tokens)


def _merged(model: Any) -> Any:
    return model.merge_and_unload() if isinstance(model, PeftModel) else model


def _facts(fitted: Fitted) -> dict[str, Any]:
    return {"trainable": fitted.trainable, "steps": fitted.steps, "train_loss": fitted.train_loss}
