"""The best epoch comes back."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

from paper.tuning.fit import KeepBest
from roadkit.errors import RecipeError


def test_the_best_epoch_comes_back():
    model, keep, nothing = nn.Linear(2, 1), KeepBest("accuracy"), cast(Any, None)

    def epoch(value: float, accuracy: float) -> None:
        with torch.no_grad():
            model.weight.fill_(value)
        keep.on_evaluate(nothing, nothing, nothing, metrics={"eval_accuracy": accuracy}, model=model)

    for value, accuracy in ((1.0, 0.5), (2.0, 0.8), (3.0, 0.8), (4.0, 0.6)):
        epoch(value, accuracy)
    keep.restore(model)
    assert model.weight.tolist() == [[2.0, 2.0]]
    assert keep.best == {"accuracy": 0.8}
    with pytest.raises(RecipeError, match="no metric 'pearson'"):
        KeepBest("pearson").on_evaluate(nothing, nothing, nothing, metrics={"eval_loss": 1.0}, model=model)


def test_the_smallest_loss_is_the_best():
    model, keep, nothing = nn.Linear(2, 1), KeepBest("loss"), cast(Any, None)
    for loss in (2.0, 1.0, 3.0):
        keep.on_evaluate(nothing, nothing, nothing, metrics={"eval_loss": loss}, model=model)
    assert keep.best == {"loss": 1.0}
