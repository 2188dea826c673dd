"""One of many adapters that are trained together: its parameters, optimiser, schedule and order of rows.

student = enrol(prepared, layers, device)
rows = next(student.batches)          # … forward, backward
problem = student.advance()           # None, or why its loss or gradient is no number
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from transformers import get_scheduler

from ...adapter import Adapter, Base
from ...modules import width_of
from ...rotation import num_parameters
from ...store import CONFIG, WEIGHTS, serialize
from ..data.prepared import Prepared
from ..output.card import model_card
from ..output.directory import CARD, FIGURES, write_files
from ..recipe import Recipe
from .session import TrainResult, figures
from .trainer import GroupedByLength


@dataclass
class Student:
    """One adapter on its way, with its own optimiser, schedule and order of rows.

    weights       all its parameters in one vector, which is what the optimiser steps and the norm is taken of
    parameters    layer → (θ, α): leaves that share the vector's memory, and their gradients its gradient's
    """

    prepared: Prepared
    weights: nn.Parameter
    parameters: dict[str, tuple[Tensor, Tensor]]
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    batches: Iterator[list[Mapping[str, Any]]]
    num_steps: int
    losses: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def name(self) -> str:
        return Path(self.recipe.output).name

    @property
    def recipe(self) -> Recipe:
        return self.prepared.recipe

    def advance(self) -> str | None:
        """One step of the optimiser; or, where loss or gradient is no number, why there is none."""
        norm = float(clip_grad_norm_(self.weights, self.recipe.max_grad_norm or math.inf))
        if not math.isfinite(self.losses[-1]) or not math.isfinite(norm):
            what, value = ("gradient", norm) if math.isfinite(self.losses[-1]) else ("loss", self.losses[-1])
            rate = self.optimizer.param_groups[0]["lr"]
            return f"the {what} became {value} at step {len(self.losses)}, learning rate {rate:.3g}"
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=False)  # the layers' gradients live in it
        return None

    def graduate(self, base: Base, seconds: float) -> TrainResult:
        """Write a finished adapter."""
        prepared, recipe = self.prepared, self.recipe
        plain = {name: (theta.detach().cpu(), alpha.detach().cpu()) for name, (theta, alpha) in self.parameters.items()}
        adapter = Adapter.from_parameters(plain, variant=recipe.variant, group_size=recipe.group_size, base=base)
        last = self.losses[-10:]
        result = TrainResult(
            adapter=Path(recipe.output),
            metrics={"train_loss": sum(self.losses) / len(self.losses), "loss": sum(last) / len(last)},
            steps=self.num_steps,
            seconds=round(seconds, 3),
            examples=len(prepared.train),
            tokens=self.tokens,
            trainable=self.weights.numel(),
            truncated=prepared.train.truncated,
            dropped=prepared.train.dropped,
        )
        config, weights = serialize(adapter)
        extra = {
            CARD: model_card(result, recipe, base).encode(),
            FIGURES: json.dumps(figures(result), indent=2, ensure_ascii=False).encode(),
        }
        write_files(recipe.output, {CONFIG: config, WEIGHTS: weights, **extra})
        return result


def enrol(prepared: Prepared, layers: Mapping[str, nn.Module], device: torch.device) -> Student:
    recipe = prepared.recipe
    sizes = {name: num_parameters(recipe.variant, width_of(layer) or 0) for name, layer in layers.items()}
    weights = nn.Parameter(torch.zeros(2 * sum(sizes.values()), device=device))
    weights.grad = torch.zeros_like(weights)
    lengths = [size for size in sizes.values() for _ in ("theta", "alpha")]
    leaves = [values.requires_grad_() for values in weights.data.split(lengths)]
    for leaf, gradient in zip(leaves, weights.grad.split(lengths), strict=True):
        leaf.grad = gradient
    parameters = dict(zip(sizes, zip(leaves[::2], leaves[1::2], strict=True), strict=True))
    with torch.no_grad():
        for _, alpha in parameters.values():
            alpha.fill_(1)
    optimizer = torch.optim.AdamW([weights], lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    rows_a_step = recipe.batch_size * recipe.gradient_accumulation
    steps_an_epoch = math.ceil(len(prepared.train) / rows_a_step)
    num_steps = recipe.max_steps or math.ceil(recipe.epochs * steps_an_epoch)
    schedule = get_scheduler(
        recipe.schedule if recipe.schedule != "constant" else "constant_with_warmup",
        optimizer,
        num_warmup_steps=int(recipe.warmup) if recipe.warmup >= 1 else math.ceil(num_steps * recipe.warmup),
        num_training_steps=num_steps,
    )
    return Student(prepared, weights, parameters, optimizer, schedule, _batches(prepared, rows_a_step), num_steps)


def _batches(prepared: Prepared, rows_a_step: int) -> Iterator[list[Mapping[str, Any]]]:
    """The rows in the order in which a run of its own would see them, epoch after epoch."""
    examples, seed = prepared.train.examples, prepared.recipe.seed
    if prepared.recipe.group_by_length:
        sampler = GroupedByLength(rows_a_step, prepared.train.lengths, seed)
    else:
        sampler = SeedableRandomSampler(examples, data_seed=seed)
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        order = list(sampler)
        for at in range(0, len(order), rows_a_step):
            yield [examples[i] for i in order[at : at + rows_a_step]]
        epoch += 1
