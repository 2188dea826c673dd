"""One training run of any method, through roadkit's own trainers. Of its epochs the best by a validation metric is kept.

    fitted = fit_method(model, "lora", recipe, tokenizer=tokenizer, train=rows, validation=others, best="accuracy")
    fitted.model, fitted.validation["accuracy"], fitted.trainable

Loops, schedules and guards are those of `roadkit.train`, whatever the method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, set_seed

from roadkit.adapter import Base
from roadkit.errors import RecipeError
from roadkit.train.model.base import padding, training_device
from roadkit.train.model.targets import head_names
from roadkit.train.recipe import Recipe
from roadkit.train.trainers.callbacks import held_out_metrics
from roadkit.train.trainers.state import RunState
from roadkit.train.trainers.trainer import build_trainer

from .methods import find_method, num_trainable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Fitted:
    """A trained model, and what its training cost.

    model        for full fine-tuning and BitFit the base model itself, changed in place
    validation   metrics of the epoch that was kept; empty without validation rows
    trainable    number of trained parameters, heads not counted
    """

    model: nn.Module
    validation: Mapping[str, float]
    trainable: int
    steps: int
    train_loss: float


class KeepBest(TrainerCallback):
    """Keeps the trained tensors of the epoch with the best `metric`: the highest, or the lowest loss; the first of equals.

    Raises `RecipeError` if an evaluation lacks the metric.
    """

    def __init__(self, metric: str):
        self.metric = metric
        self.best: dict[str, float] = {}
        self._kept: dict[str, Tensor] = {}

    def on_evaluate(self, args, state, control, **kwargs: Any) -> None:
        found = held_out_metrics(kwargs["metrics"])
        if self.metric not in found:
            raise RecipeError(f"no metric {self.metric!r} to choose an epoch by; there are {', '.join(found)}")
        better = -1 if self.metric == "loss" else 1
        if self.best and better * found[self.metric] <= better * self.best[self.metric]:
            return
        self.best = found
        self._kept = snapshot(kwargs["model"])

    def restore(self, model: nn.Module) -> None:
        """Put the kept tensors back into the model."""
        put_back(model, self._kept)


class AfterEpoch(TrainerCallback):
    """Shows the model to `look` whenever an epoch ends."""

    def __init__(self, look: Callable[[nn.Module], None]):
        self.look = look

    def on_epoch_end(self, args, state, control, **kwargs: Any) -> None:
        self.look(kwargs["model"])


def fit_method(
    model: PreTrainedModel,
    method: str,
    recipe: Recipe,
    *,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]] = (),
    best: str = "loss",
    after_epoch: Callable[[nn.Module], None] | None = None,
) -> Fitted:
    """Train `method` on tokenised rows. With validation rows, evaluate after every epoch and keep the best one.

    best          the metric that chooses the epoch
    after_epoch   called with the model at the end of each epoch

    Raises `RecipeError` for an unknown method or metric, and for a loss that stops being a number.
    """
    heads = head_names(model, recipe)
    set_seed(recipe.seed)
    tuned = find_method(method).tune(model, recipe)
    tuned.train()
    with padding(tokenizer, model):
        trainer = build_trainer(
            tuned,
            RunState(recipe, Base("", ""), {}),
            tokenizer=tokenizer,
            train=train,
            held_out=validation or None,
            device=training_device(model),
        )
        keep = KeepBest(best)
        if validation:
            size = recipe.eval_batch_size or recipe.batch_size
            trainer.args.set_evaluate("epoch", batch_size=size, delay=0.0)
            trainer.add_callback(keep)
        if after_epoch:
            trainer.add_callback(AfterEpoch(after_epoch))
        outcome = trainer.train()
    if validation:
        keep.restore(tuned)
    tuned.eval()
    return Fitted(tuned, keep.best, num_trainable(tuned, heads), outcome.global_step, outcome.training_loss)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the tensors that are trained."""
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


@torch.no_grad()
def put_back(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Copy the tensors of a `snapshot` back into the model."""
    parameters = dict(model.named_parameters())
    for name, value in kept.items():
        parameters[name].copy_(value)
