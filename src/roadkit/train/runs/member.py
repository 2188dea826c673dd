"""One of many adapters that are trained together: its parameters, optimiser, schedule and order of rows.

member = Member.begin(data, layers, device)
rows = next(member.batches)           # … forward, backward
problem = member.step()               # None, or why its loss or gradient is no number
result = member.finish(base, seconds=12.0)
"""

from __future__ import annotations

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
from ..data.training_data import TrainingData
from ..output.card import result_files
from ..output.directory import write_files
from ..output.result import TrainResult
from ..recipe import Recipe
from ..trainers.sampler import GroupedByLength
from ..trainers.schedule import SCHEDULERS, num_steps, num_warmup_steps


@dataclass
class Member:
    """One adapter in training, independent of those that it is trained with.

    weights       all its parameters in one vector, which the optimiser steps and of which the gradient norm is taken
    parameters    layer → (θ, α): leaves that share the vector's memory, as their gradients share its gradient's
    batches       the rows of step after step, without end
    losses        one a step (nats a token)
    tokens        seen so far, padding not counted
    """

    data: TrainingData
    weights: nn.Parameter
    parameters: dict[str, tuple[Tensor, Tensor]]
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    batches: Iterator[list[Mapping[str, Any]]]
    num_steps: int
    losses: list[float] = field(default_factory=list)
    tokens: int = 0

    @classmethod
    def begin(cls, data: TrainingData, layers: Mapping[str, nn.Module], device: torch.device) -> Member:
        """An adapter that does nothing yet, on the layers of a base model."""
        recipe = data.recipe
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
        steps = num_steps(recipe, rows=len(data.train))
        schedule = get_scheduler(
            SCHEDULERS[recipe.schedule],
            optimizer,
            num_warmup_steps=num_warmup_steps(recipe, steps),
            num_training_steps=steps,
        )
        return cls(data, weights, parameters, optimizer, schedule, _batches(data), steps)

    @property
    def name(self) -> str:
        return Path(self.recipe.output).name

    @property
    def recipe(self) -> Recipe:
        return self.data.recipe

    @property
    def is_done(self) -> bool:
        return len(self.losses) == self.num_steps

    def step(self) -> str | None:
        """One step of the optimiser. If loss or gradient is no number there is none: → the problem, in words."""
        norm = float(clip_grad_norm_(self.weights, self.recipe.max_grad_norm or math.inf))
        if not math.isfinite(self.losses[-1]) or not math.isfinite(norm):
            what, value = ("gradient", norm) if math.isfinite(self.losses[-1]) else ("loss", self.losses[-1])
            rate = self.optimizer.param_groups[0]["lr"]
            return f"the {what} became {value} at step {len(self.losses)}, learning rate {rate:.3g}"
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=False)  # the layers' gradients live in it
        return None

    def finish(self, base: Base, *, seconds: float) -> TrainResult:
        """Write the trained adapter to its output, with its card and figures; `seconds` it took."""
        data, recipe = self.data, self.recipe
        plain = {name: (theta.detach().cpu(), alpha.detach().cpu()) for name, (theta, alpha) in self.parameters.items()}
        adapter = Adapter.from_parameters(plain, variant=recipe.variant, group_size=recipe.group_size, base=base)
        last = self.losses[-10:]
        result = TrainResult(
            adapter=Path(recipe.output),
            metrics={"train_loss": sum(self.losses) / len(self.losses), "loss": sum(last) / len(last)},
            steps=self.num_steps,
            seconds=round(seconds, 3),
            examples=len(data.train),
            tokens=self.tokens,
            trainable=self.weights.numel(),
            truncated=data.train.truncated,
            dropped=data.train.dropped,
        )
        config, weights = serialize(adapter)
        write_files(recipe.output, {CONFIG: config, WEIGHTS: weights, **result_files(result, recipe, base)})
        return result


def _batches(data: TrainingData) -> Iterator[list[Mapping[str, Any]]]:
    """The rows of each step, epoch after epoch in the order in which a run of its own would see them."""
    examples, recipe = data.train.examples, data.recipe
    rows_a_step = recipe.batch_size * recipe.gradient_accumulation
    if recipe.group_by_length:
        sampler = GroupedByLength(rows_a_step, data.train.lengths, recipe.seed)
    else:
        sampler = SeedableRandomSampler(examples, data_seed=recipe.seed)
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        order = list(sampler)
        for at in range(0, len(order), rows_a_step):
            yield [examples[i] for i in order[at : at + rows_a_step]]
        epoch += 1
