"""GLUE rows ready for any method: tokenised, split as the paper does, with a fresh base model for each run.

data = EncoderData.load("rte", Settings(rows=300), data=Path("../shared/data"), seed=0)
model = data.fresh(); fitted = data.fit(model, "lora", 1e-3); data.score(fitted.model, data.test)
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
from roadkit.errors import RecipeError, nearest
from roadkit.train.data.encoded import encode
from roadkit.train.data.training_data import TrainingData, prepare_data
from roadkit.train.evaluation.metrics import classification_metrics, regression_metrics
from roadkit.train.model.base import load_base
from roadkit.train.model.targets import head_names
from roadkit.train.recipe import Recipe

from ..scoring import glue
from .fit import Fitted, fit

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Settings:
    """What the runs of one experiment share.

    rows, validation, test  rows drawn of each part; None takes all
    bf16                    16-bit autocast; weights stay float32, whatever the method
    search_epochs           of the runs that choose a learning rate; None: as many as the others
    head_learning_rate      of the classifier, and the pooler with it, whatever the method; None: the method's
    frozen_pooler           a BERT's pooler is a layer like others, not trained with the classifier as RoBERTa's is
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


FULL = Settings("full", "FacebookAI/roberta-base", None, None, None, 20, 32, 128, 2)  # §C.1; group size 2: neighbours
SETTINGS = {"small": Settings(head_learning_rate=1e-3), "full": FULL}


@dataclass(frozen=True)
class EncoderData:
    """One task's rows, for the runs of one seed. `recipe` holds what every method shares."""

    task: str
    prepared: TrainingData
    validation: Rows
    test: Rows
    bf16: bool
    frozen_pooler: bool = False

    @classmethod
    def load(cls, task: str, settings: Settings, *, data: Path | None, seed: int) -> EncoderData:
        """Rows are drawn, and the development set is cut, by the seed (table C.1)."""
        if task not in glue.TASKS:
            raise RecipeError(f"no task {task!r}{nearest(task, glue.TASKS)}; there are {', '.join(glue.TASKS)}")
        found = glue.TASKS[task]
        train, dev = glue.load(found, data)
        validation, test = glue.split_dev(dev, seed=seed)
        recipe = Recipe(
            model=settings.model,
            data=found.train,
            output=str(Path(tempfile.gettempdir()) / f"roadkit-{task}"),
            task=found.kind,  # type: ignore[arg-type]
            num_labels=found.num_labels if found.kind == "classification" else None,
            columns=found.columns if data is None else {},
            max_length=settings.max_length,
            group_size=settings.group_size,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            eval_batch_size=2 * settings.batch_size,
            group_by_length=True,
            head_learning_rate=settings.head_learning_rate,
            seed=seed,
        )
        prepared = prepare_data(recipe, table=glue.sample_rows(train, settings.rows, seed=seed))
        held_out = [
            encode(
                glue.sample_rows(part, count, seed=seed), prepared.layout, prepared.tokenizer, recipe,
                max_length=prepared.max_length,
            ).examples
            for part, count in ((validation, settings.validation), (test, settings.test))
        ]  # fmt: skip
        validation_rows, test_rows = held_out
        return cls(task, prepared, validation_rows, test_rows, settings.bf16, settings.frozen_pooler)

    @property
    def metric(self) -> str:
        return glue.TASKS[self.task].metric

    def fresh(self) -> Any:
        """The base model with a new head that depends on the seed alone, on the GPU where there is one."""
        return load_base(self.prepared, device=models.best_device())

    def fit(self, model: Any, method: str, learning_rate: float, *, epochs: int | None = None) -> Fitted:
        """Train in place, `epochs` in place of the settings'; of the epochs the one best on validation is kept."""
        with tempfile.TemporaryDirectory() as folder:
            output = str(Path(folder) / "adapter")
            changes = {"learning_rate": learning_rate, "output": output, "bf16": self.bf16}
            changes |= {} if epochs is None else {"epochs": epochs}
            changes |= {} if self.frozen_pooler else {"modules_to_save": with_pooler(model, self.prepared.recipe)}
            recipe = Recipe(**self.prepared.recipe.model_dump() | changes)
            return fit(
                model, method, recipe, tokenizer=self.prepared.tokenizer,
                train=self.prepared.train.examples, validation=self.validation, best=self.metric,
            )  # fmt: skip

    def batches(self, rows: Sequence[Mapping[str, Any]], size: int = 32) -> list[dict[str, Tensor]]:
        """Padded batches in the rows' order."""
        parts = [rows[at : at + size] for at in range(0, len(rows), size)]
        return [dict(self.prepared.tokenizer.pad([dict(row) for row in part], return_tensors="pt")) for part in parts]

    @torch.no_grad()
    def score(self, model: Any, rows: Rows) -> float:
        """The task's metric."""
        logits, gold = [], []
        for batch in self.batches(rows):
            gold.append(batch.pop("labels"))
            device = next(model.parameters()).device
            with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                found = model(**{key: value.to(device) for key, value in batch.items()})
            logits.append(found.logits.float().cpu())
        return metric_of(self.metric, torch.cat(logits), torch.cat(gold))


def with_pooler(model: Any, recipe: Recipe) -> tuple[str, ...]:
    """The classifier, and the pooler before it where the model has one (BERT; sentence encoders leave it untrained)."""
    pooler = f"{model.base_model_prefix}.pooler"
    own = [pooler] if getattr(model.base_model, "pooler", None) is not None else []
    return (*head_names(model, recipe), *own)


def metric_of(metric: str, logits: Tensor, labels: Tensor) -> float:
    """One metric of logits [n, labels], or [n, 1] of a regression."""
    if metric in ("pearson", "spearman"):
        return regression_metrics(logits.squeeze(-1).numpy(), labels.float().numpy())[metric]
    return classification_metrics(logits.argmax(-1).numpy(), labels.numpy())[metric]
