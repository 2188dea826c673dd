"""GLUE rows ready for any method: tokenised, split as the paper does, with a fresh base model for each run.

data = EncoderData.load("rte", EncoderSettings(rows=300), data=None, seed=0)
fitted = data.fit(data.fresh(), "lora", 1e-3)
data.score(fitted.model, data.test)
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roadkit import models
from roadkit.train.data.encoded import encode
from roadkit.train.data.training_data import TrainingData, prepare_data
from roadkit.train.evaluation.metrics import classification_metrics, regression_metrics
from roadkit.train.model.base import load_base
from roadkit.train.model.targets import head_names
from roadkit.train.recipe import Recipe

from ..data import sample_rows
from ..scoring.glue_tasks import find_glue_task, load_glue, split_dev
from .fit import Fitted, fit_method

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class EncoderSettings:
    """What an experiment's runs on an encoder share.

    rows, validation, test   rows drawn of each part; None takes all
    bf16                     16-bit autocast; weights stay float32, whatever the method
    search_epochs            epochs of the runs that choose a learning rate; None: as many as the others have
    head_learning_rate       of the classifier and the pooler, whatever the method; None: the method's
    frozen_pooler            a BERT's pooler is left to the method, like any layer; else it trains with the classifier
    """

    scale: str = "small"
    model: str = "minilm"
    rows: int | None = 400
    validation: int | None = 150
    test: int | None = 300
    epochs: int = 3
    batch_size: int = 16
    max_length: int = 64
    group_size: int = 64
    bf16: bool = False
    search_epochs: int | None = None
    head_learning_rate: float | None = None
    frozen_pooler: bool = False


ENCODER_SCALES = {
    "small": EncoderSettings(head_learning_rate=1e-3),
    "full": EncoderSettings(  # §C.1; group size 2 pairs neighbours
        "full", "FacebookAI/roberta-base", rows=None, validation=None, test=None, epochs=20, batch_size=32, max_length=128,
        group_size=2,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class EncoderData:
    """One task's rows, for the runs of one seed. `prepared.recipe` holds what every method shares."""

    task: str
    prepared: TrainingData
    validation: Rows
    test: Rows
    bf16: bool
    frozen_pooler: bool = False

    @classmethod
    def load(cls, task: str, settings: EncoderSettings, *, data: Path | None, seed: int) -> EncoderData:
        """The seed draws the rows, and cuts the development set (table C.1). `data` is the folder of `read_rows`."""
        found = find_glue_task(task)
        train, dev = load_glue(task, data, scale=settings.scale)
        validation, test = split_dev(dev, seed=seed)
        recipe = Recipe(
            model=settings.model,
            data=train.origin,
            output=str(Path(tempfile.gettempdir()) / f"roadkit-{task}"),
            task=found.kind,  # type: ignore[arg-type]
            num_labels=found.num_labels if found.kind == "classification" else None,
            max_length=settings.max_length,
            group_size=settings.group_size,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            eval_batch_size=2 * settings.batch_size,
            group_by_length=True,
            head_learning_rate=settings.head_learning_rate,
            seed=seed,
        )
        prepared = prepare_data(recipe, table=sample_rows(train, settings.rows, seed=seed))
        held_out = [
            encode(
                sample_rows(part, count, seed=seed), prepared.layout, prepared.tokenizer, recipe,
                max_length=prepared.max_length,
            ).examples
            for part, count in ((validation, settings.validation), (test, settings.test))
        ]  # fmt: skip
        validation_rows, test_rows = held_out
        return cls(task, prepared, validation_rows, test_rows, settings.bf16, settings.frozen_pooler)

    @property
    def metric(self) -> str:
        return find_glue_task(self.task).metric

    def fresh(self) -> Any:
        """The base model with a new head that depends on the seed alone; on the GPU if there is one."""
        return load_base(self.prepared, device=models.best_device())

    def fit(self, model: Any, method: str, learning_rate: float, *, epochs: int | None = None) -> Fitted:
        """Train in place. Of the epochs, the best on validation is kept.

        epochs   instead of the settings'
        """
        with tempfile.TemporaryDirectory() as folder:
            output = str(Path(folder) / "adapter")
            changes = {"learning_rate": learning_rate, "output": output, "bf16": self.bf16}
            changes |= {} if epochs is None else {"epochs": epochs}
            changes |= {} if self.frozen_pooler else {"modules_to_save": with_pooler(model, self.prepared.recipe)}
            recipe = Recipe(**self.prepared.recipe.model_dump() | changes)
            return fit_method(
                model, method, recipe, tokenizer=self.prepared.tokenizer,
                train=self.prepared.train.examples, validation=self.validation, best=self.metric,
            )  # fmt: skip

    def batches(self, rows: Sequence[Mapping[str, Any]], size: int = 32) -> list[dict[str, Tensor]]:
        """Padded batches in the rows' order."""
        parts = [rows[at : at + size] for at in range(0, len(rows), size)]
        return [dict(self.prepared.tokenizer.pad([dict(row) for row in part], return_tensors="pt")) for part in parts]

    @torch.no_grad()
    def score(self, model: Any, rows: Rows) -> float:
        """The task's metric on `rows`, as `self.test` holds them."""
        logits, gold = [], []
        for batch in self.batches(rows):
            gold.append(batch.pop("labels"))
            device = next(model.parameters()).device
            with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                found = model(**{key: value.to(device) for key, value in batch.items()})
            logits.append(found.logits.float().cpu())
        return metric_of(self.metric, torch.cat(logits), torch.cat(gold))


def with_pooler(model: Any, recipe: Recipe) -> tuple[str, ...]:
    """The names of the classifier and, if the model has one before it, the pooler, which sentence encoders leave untrained."""
    pooler = f"{model.base_model_prefix}.pooler"
    own = [pooler] if getattr(model.base_model, "pooler", None) is not None else []
    return (*head_names(model, recipe), *own)


def metric_of(metric: str, logits: Tensor, labels: Tensor) -> float:
    """One metric of logits [n, labels], or [n, 1] of a regression, against labels [n]."""
    if metric in ("pearson", "spearman"):
        return regression_metrics(logits.squeeze(-1).numpy(), labels.float().numpy())[metric]
    return classification_metrics(logits.argmax(-1).numpy(), labels.numpy())[metric]
