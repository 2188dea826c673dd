"""The pilot studies (§3.1): what fine-tuning changes, length or direction, and which of the two a classifier needs.

    run_displacement(EncoderSettings(), Ledger(path), data=None)        # study 1, figures 2 left and middle, B.1
    run_disentanglement(EncoderSettings(), Ledger(path), data=None)     # study 2, figure 2 right

Study 2 takes the tasks of figure 2: RTE, MRPC, STS-B and CoLA.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from ..ledger import Ledger
from ..scoring.disentanglement import PARTS, Part, Probe
from ..scoring.displacement import cls_states, displacement, distribution
from ..tuning.encoders import EncoderData, EncoderSettings, Rows, metric_of
from ..tuning.methods import find_method
from .jobs import Job, log, run_jobs

MOVED = ("full", "lora", "road_1")
PROBED = ("mrpc", "stsb", "cola", "rte")
PROBE_RATES, PROBE_BATCH = (1e-3, 1e-2), 32
PROBE_SETTINGS = ("scale", "model", "rows", "validation", "test", "max_length")  # what study 2 uses of the settings
Progress = Callable[[str], None]


def run_displacement(
    settings: EncoderSettings,
    ledger: Ledger,
    *,
    data: Path | None,
    task: str = "sst2",
    methods: Sequence[str] = MOVED,
    seed: int = 0,
    budget: float | None = None,
    progress: Progress = log.info,
) -> int:
    """Study 1: fine-tune on `task` with each method, then ΔM and ΔD of every development row, validation and test.

    A method has its second learning rate. → how many runs the budget left out

    data   the folder of `read_rows`
    """
    rows = EncoderData.load(task, settings, data=data, seed=seed)

    def compute(method: str, rate: float) -> dict[str, Any]:
        development = [*rows.validation, *rows.test]
        batches = rows.batches(development)
        before = cls_states(rows.fresh(), batches)
        fitted = rows.fit(rows.fresh(), method, rate)
        moved = displacement(cls_states(fitted.model, batches), before)
        return {
            "metric": rows.metric,
            "validation": fitted.validation[rows.metric],
            "trainable": fitted.trainable,
            "samples": len(development),
            **{name: distribution(values) for name, values in moved.items()},
        }

    def jobs() -> Iterator[Job]:
        for method in methods:
            rate = find_method(method).rates_at(settings.scale, 1)[0]
            setup = {
                "experiment": "pilot1",
                **dataclasses.asdict(settings),
                "task": task,
                "method": method,
                "learning_rate": rate,
            }
            yield Job(f"pilot 1, {find_method(method).label}", setup, seed, partial(compute, method, rate))

    return run_jobs(jobs(), ledger, budget=budget, progress=progress)


def run_disentanglement(
    settings: EncoderSettings,
    ledger: Ledger,
    *,
    data: Path | None,
    tasks: Sequence[str] = PROBED,
    seed: int = 0,
    epochs: int = 10,
    budget: float | None = None,
    progress: Progress = log.info,
) -> int:
    """Study 2: a classifier on frozen [CLS] features that sees output, magnitude or angle; and one on a random backbone.

    Each is trained with every rate of `PROBE_RATES`, and the one that is better on validation is scored on test.
    → how many runs the budget left out

    data     the folder of `read_rows`
    epochs   of the classifiers
    """

    def compute(task: str, backbone: str, parts: Sequence[Part]) -> dict[str, Any]:
        rows = EncoderData.load(task, settings, data=data, seed=seed)
        model = rows.fresh()
        if backbone == "random":
            set_seed(seed)
            model = type(model)(model.config).to(model.device).eval()
        sets = [_features(model, rows, part) for part in (rows.prepared.train.examples, rows.validation, rows.test)]
        scores = {part: _probe(sets, rows, part, epochs, seed) for part in parts}
        return {"metric": rows.metric, "scores": scores}

    def jobs() -> Iterator[Job]:
        for task in tasks:
            for backbone, parts in (("pretrained", PARTS), ("random", PARTS[:1])):
                setup = {
                    "experiment": "pilot2",
                    **{name: getattr(settings, name) for name in PROBE_SETTINGS},
                    "epochs": epochs,
                    "batch_size": PROBE_BATCH,
                    "task": task,
                    "backbone": backbone,
                }
                yield Job(f"pilot 2, {task}, {backbone}", setup, seed, partial(compute, task, backbone, parts))

    return run_jobs(jobs(), ledger, budget=budget, progress=progress)


def _features(model: Any, rows: EncoderData, examples: Rows) -> tuple[Tensor, Tensor]:
    """The last block's [CLS] [n, d], and the labels [n]."""
    batches = rows.batches(examples)
    return cls_states(model, batches)[-1], torch.cat([batch["labels"] for batch in batches])


def _probe(
    sets: Sequence[tuple[Tensor, Tensor]], rows: EncoderData, part: Part, epochs: int, seed: int
) -> dict[str, float]:
    """Validation and test score of the better learning rate. `sets`: features and labels to train on, of validation, of test."""
    (x, labels), *held_out = sets
    found = []
    for rate in PROBE_RATES:
        set_seed(seed)
        probe = Probe(x.shape[1], rows.prepared.num_labels, part=part)
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=PROBE_BATCH, learning_rate=rate,
                weight_decay=0.0, warmup_steps=0.1, lr_scheduler_type="linear", seed=seed, save_strategy="no",
                report_to="none", disable_tqdm=True, logging_strategy="no", use_cpu=True,
            )  # fmt: skip
            data = [{"x": feature, "labels": label} for feature, label in zip(x, labels, strict=True)]
            trainer = Trainer(probe, arguments, train_dataset=data)  # type: ignore[arg-type]
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        validation, test = (_score(probe, rows.metric, *pair) for pair in held_out)
        found.append({"validation": validation, "test": test, "learning_rate": rate})
    return max(found, key=lambda score: score["validation"])


@torch.no_grad()
def _score(probe: Probe, metric: str, x: Tensor, labels: Tensor) -> float:
    return metric_of(metric, probe(x)["logits"], labels)
