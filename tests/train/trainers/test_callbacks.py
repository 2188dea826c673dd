"""The guard stops a run before its weights are ruined, and every step is reported."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

import roadkit as rk
from roadkit.adapter import Base
from roadkit.errors import RecipeError
from roadkit.train import run
from roadkit.train.trainers import trainer
from roadkit.train.trainers.callbacks import StepGuard
from roadkit.train.trainers.checkpoints import complete_checkpoints
from roadkit.train.trainers.state import RunState


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(make_recipe, monkeypatch):
    real, seen = trainer.answer_loss, []

    def poisoned(*args):
        seen.append(1)
        loss, count = real(*args)
        return (loss * float("nan") if len(seen) == 4 else loss), count

    monkeypatch.setattr(trainer, "answer_loss", poisoned)
    recipe = make_recipe(save_steps=2, max_steps=6)
    with pytest.raises(RecipeError, match=r"the loss became nan at step 4, learning rate 0\.0\d+.*checkpoint-2"):
        run(recipe)
    (kept,) = complete_checkpoints(recipe.run_dir)
    assert torch.isfinite(rk.Adapter.load(kept).a).all()
    assert not Path(recipe.output).exists()


@pytest.mark.parametrize(("scaler", "stops"), [(None, True), ("accelerate's", False)])
def test_an_overflow_that_a_scaler_expects_does_not_stop(make_recipe, tmp_path, scaler, stops):
    model = torch.nn.Linear(1, 1)
    model.weight.grad = torch.tensor([[float("inf")]])
    guard = StepGuard(
        RunState(make_recipe(), Base("tiny", ""), {}, last_loss=1.0),
        cast(Any, SimpleNamespace(accelerator=SimpleNamespace(scaler=scaler))),
    )
    rates = SimpleNamespace(param_groups=[{"lr": 1.0, "params": [model.weight]}])
    told: Any = (SimpleNamespace(world_size=1), SimpleNamespace(global_step=0), None)
    if stops:
        with pytest.raises(RecipeError, match="the gradient became inf at step 1"):
            guard.on_pre_optimizer_step(*told, model=model, optimizer=rates)
    else:
        guard.on_pre_optimizer_step(*told, model=model, optimizer=rates)


def test_progress_is_reported_after_every_step_and_evaluation(make_recipe):
    reports = []
    run(make_recipe(eval_fraction=0.2, eval_steps=2), progress=reports.append)
    steps = [report.step for report in reports if not report.metrics]
    assert steps == [1, 2, 3, 4]
    assert all(report.num_steps == 4 and report.tokens_per_second > 0 for report in reports)
    assert [report.step for report in reports if report.metrics] == [2, 4, 4]
    assert reports[-1].metrics["loss"] > 0
