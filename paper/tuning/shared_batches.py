"""Test rows of several GLUE tasks in shared batches, every row with its own task's adapter and head.

    save_fitted(fitted, data, folder)                                           # after a run of RoAd
    score_in_shared_batches({"sst2": (data, Adapter.load(folder)), "rte": …})   # {"sst2": 0.81, "rte": 0.55}

One base model serves all tasks, as it would a fleet of classifiers in production.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roadkit import models
from roadkit.adapter import Adapter, Base
from roadkit.engine.bank import Bank
from roadkit.train.output.directory import write_files
from roadkit.train.output.tensors import adapter_files, trainable_tensors

from .encoders import EncoderData, metric_of
from .fit import Fitted

BATCH = 32


def save_fitted(fitted: Fitted, data: EncoderData, folder: Path) -> None:
    """Write a trained RoAd and its head as a PEFT directory, atomically."""
    recipe, model = data.prepared.recipe, fitted.model
    base = Base(models.canonical_name(recipe.model), models.config_fingerprint(model.config))  # type: ignore[attr-defined]
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_files(folder, adapter_files(trainable_tensors(model), model, base, recipe))  # type: ignore[arg-type]


@torch.no_grad()
def score_in_shared_batches(tasks: Mapping[str, tuple[EncoderData, Adapter]]) -> dict[str, float]:
    """Task → its metric on its test rows. The tasks' rows alternate, `BATCH` of them a batch."""
    first, _ = next(iter(tasks.values()))
    model = first.fresh().eval()
    turns = itertools.zip_longest(*([(task, row) for row in data.test] for task, (data, _) in tasks.items()))
    rows = [row for turn in turns for row in turn if row is not None]
    found: dict[str, list[Tensor]] = {task: [] for task in tasks}
    gold: dict[str, list[Any]] = {task: [] for task in tasks}
    bank = Bank(model, {task: adapter for task, (_, adapter) in tasks.items()})
    for at in range(0, len(rows), BATCH):
        names, examples = zip(*rows[at : at + BATCH], strict=True)
        (batch,) = first.batches(examples, size=BATCH)
        labels = batch.pop("labels").tolist()
        device = next(model.parameters()).device
        with bank.rows(names), torch.autocast(device.type, torch.bfloat16, enabled=first.bf16):
            logits = model(**{key: value.to(device) for key, value in batch.items()}).logits
        for name, scores, label in zip(names, logits, labels, strict=True):
            found[name].append(scores.float().cpu())
            gold[name].append(label)
    bank.close()
    return {
        task: metric_of(data.metric, torch.stack(found[task]), torch.tensor(gold[task]))
        for task, (data, _) in tasks.items()
    }
