"""What a run would train and how long it would take, measured on the model without training it.

cost = measure(prepare_data(recipe), None, timed=True)
cost.trainable, cost.num_steps, cost.seconds
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data.batches import pad_batch
from ..data.training_data import TrainingData
from ..model.base import check_head, load_base, padding, training_device
from ..model.borrowed import borrowed
from ..model.loss import answer_loss
from ..model.targets import target_layers
from ..model.trainable import make_trainable
from ..trainers.schedule import num_steps


@dataclass(frozen=True)
class Cost:
    """What one run trains, and how long it takes.

    trainable      parameters that are trained, of `parameters` in the model; on `layers` layers
    num_steps      of the optimiser
    seconds        that the steps take, judged by one batch; None if it was not timed
    """

    layers: int
    trainable: int
    parameters: int
    num_steps: int
    seconds: float | None


def measure(data: TrainingData, model: PreTrainedModel | None, *, timed: bool) -> Cost:
    """Make the model trainable, and time a batch if `timed`. A `model` already loaded is given back as it was.

    Raises `RecipeError` for a model that the recipe or the data does not fit.
    """
    recipe = data.recipe
    base = model if model is not None else load_base(data, device=training_device(None))
    check_head(data, base)
    parameters = sum(parameter.numel() for parameter in base.parameters())
    with borrowed(base), padding(data.tokenizer, base):
        layers = len(target_layers(base, recipe))
        peft_model = make_trainable(base, recipe)
        trainable = sum(parameter.numel() for parameter in peft_model.parameters() if parameter.requires_grad)
        if recipe.gradient_checkpointing:
            peft_model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        steps = num_steps(recipe, rows=_num_sequences(data))
        seconds = _batch_seconds(data, peft_model) * steps * recipe.gradient_accumulation if timed else None
    return Cost(layers, trainable, parameters, steps, seconds)


def _num_sequences(data: TrainingData) -> int:
    """Rows as the trainer gets them; packed ones fill their sequences, more or less."""
    return math.ceil(data.train.num_tokens / data.max_length) if data.recipe.packing else len(data.train)


def _batch_seconds(data: TrainingData, model: Any) -> float:
    """Forward and backward of one batch of rows drawn at random, the second time (the first one warms up)."""
    recipe, examples = data.recipe, data.train.examples
    drawn = random.Random(recipe.seed).sample(examples, min(recipe.batch_size, len(examples)))
    if recipe.packing:
        repeats = math.ceil(data.max_length / max(1, data.train.num_tokens // len(examples)))
        drawn = [{key: (value * repeats)[: data.max_length] for key, value in row.items()} for row in drawn]
    if recipe.task == "causal":
        batch = pad_batch(drawn, data.tokenizer.pad_token_id)  # type: ignore[arg-type]
    else:
        batch = dict(data.tokenizer.pad(drawn, return_tensors="pt"))
    batch = {key: value.to(model.device) for key, value in batch.items()}
    model.train()
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=recipe.bf16):
            loss = answer_loss(model, batch)[0] if recipe.task == "causal" else model(**batch).loss
        loss.backward()
        float(loss.detach())
        seconds = time.perf_counter() - start
        model.zero_grad()
    if recipe.group_by_length:  # batches are narrower than one drawn at random
        mean = data.train.num_tokens / len(examples)
        seconds *= min(1.0, mean * len(drawn) / batch["input_ids"].numel())
    return seconds
