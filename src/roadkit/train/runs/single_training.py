"""One adapter trained on data that is prepared, by TRL's or transformers' trainer.

result = train_single(prepare_data(recipe), None, progress=None, start=time.perf_counter())
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, set_seed

from ... import models
from ...adapter import Base
from ..data.training_data import TrainingData
from ..model.base import check_head, load_base, padding, training_device
from ..model.borrowed import borrowed
from ..model.trainable import make_trainable
from ..output.card import result_files
from ..output.directory import check_output
from ..output.result import TrainResult
from ..progress import Progress
from ..trainers.callbacks import held_out_metrics
from ..trainers.checkpoints import (
    data_fingerprint,
    delete_checkpoints,
    resume_or_start_over,
    run_identity,
    weights_fingerprint,
)
from ..trainers.isolation import check_isolated
from ..trainers.state import RunState
from ..trainers.trainer import build_trainer


def train_single(
    data: TrainingData, model: PreTrainedModel | None, *, progress: Progress | None, start: float
) -> TrainResult:
    """Train an adapter and write it with its card and figures. `model`: already loaded; `start`: when the run began."""
    device = training_device(model)
    base_model = model if model is not None else load_base(data)
    check_head(data, base_model)
    check_output(data.recipe.output, data.recipe)
    with borrowed(base_model), padding(data.tokenizer, base_model):
        return _train(data, base_model, device=device, progress=progress, start=start)


def _train(
    data: TrainingData, base_model: PreTrainedModel, *, device: str, progress: Progress | None, start: float
) -> TrainResult:
    recipe = data.recipe
    base = Base(models.canonical_name(recipe.model), models.config_fingerprint(base_model.config))
    identity = run_identity(
        recipe,
        base=base.name,
        fingerprint=base.fingerprint,
        weights=weights_fingerprint(base_model),
        data=data_fingerprint(data.train.examples),
    )
    checkpoint = resume_or_start_over(recipe, identity)
    set_seed(recipe.seed)
    peft_model = make_trainable(base_model, recipe)
    trainable = sum(parameter.numel() for parameter in peft_model.parameters() if parameter.requires_grad)
    run_state = RunState(recipe, base, identity, progress)
    trainer = build_trainer(
        peft_model,
        run_state,
        tokenizer=data.tokenizer,
        train=data.train.examples,
        held_out=data.held_out.examples if data.held_out else None,
        device=device,
    )
    if recipe.packing:
        check_isolated(trainer, data.train.examples)
    outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    tokens: Any = trainer.accelerator.reduce(torch.tensor(run_state.tokens, device=trainer.args.device))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]  # of every step, resumed or not
    metrics = {"train_loss": statistics.fmean(losses), "loss": statistics.fmean(losses[-10:])} if losses else {}
    if data.held_out is not None:
        metrics |= {f"eval_{name}": value for name, value in held_out_metrics(trainer.evaluate()).items()}
    result = TrainResult(
        adapter=Path(recipe.output),
        metrics=metrics,
        steps=outcome.global_step,
        seconds=round(time.perf_counter() - start, 3),
        examples=len(data.train),
        tokens=int(tokens),
        trainable=trainable,
        truncated=data.train.truncated,
        dropped=data.train.dropped,
        resumed_from=int(checkpoint.name.rpartition("-")[2]) if checkpoint else None,
        classes=data.classes,
    )
    run_state.extra_files = result_files(result, recipe, base)
    trainer.save_model(recipe.output)
    if trainer.is_world_process_zero() and not recipe.keep_checkpoints:
        delete_checkpoints(recipe.run_dir)
    return result
