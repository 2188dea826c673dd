"""One training run from recipe to adapter.

result = run(Recipe(model="smollm2", data="answers.jsonl", output="adapters/json"))
result.adapter, result.metrics["loss"], result.seconds
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import models
from ...errors import RecipeError
from ..data.prepared import Prepared, check_head, load_base, padding, prepare, use_cpu
from ..recipe import Recipe
from .progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("roadkit.train")


@dataclass(frozen=True)
class TrainResult:
    """What a run made. `adapter` is the directory written (with LoRA: road/ and lora/ in it).

    metrics     loss (mean of the last steps), train_loss (mean of the run), and with held-out rows eval_loss, …
    steps       of the optimiser; seconds of this call, loading included
    tokens      seen by this call, padding not counted
    trainable   parameters; truncated, dropped: rows (see `Encoded`)
    """

    adapter: Path
    metrics: Mapping[str, float]
    steps: int
    seconds: float
    examples: int = 0
    tokens: int = 0
    trainable: int = 0
    truncated: int = 0
    dropped: int = 0
    resumed_from: int | None = None
    classes: Sequence[str] | int | None = field(default=None)


def run(
    recipe: Recipe,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train one adapter and write it to `recipe.output`, with a model card.

    model, tokenizer    already loaded (both or none); afterwards the model is as it was before
    progress            called after every step and evaluation

    Raises `RecipeError` for a recipe or data that cannot be used, a loss that is no number, and a checkpoint that
    belongs to something else; `ModelError` for a base model that cannot be loaded.
    """
    start = time.perf_counter()
    if (model is None) != (tokenizer is None):
        raise RecipeError("give model and tokenizer together, or neither")
    if recipe.tensorboard and not any(map(importlib.util.find_spec, ("tensorboard", "tensorboardX"))):
        raise RecipeError("tensorboard: true needs the package: pip install tensorboard")
    prepared = prepare(recipe, model=model, tokenizer=tokenizer)
    on_cpu = use_cpu(model)
    base_model = model if model is not None else load_base(prepared)
    check_head(prepared, base_model)

    from ..model.tuned import borrowed
    from ..output.directory import check_output

    check_output(recipe.output, recipe)

    with borrowed(base_model), padding(prepared.tokenizer, base_model):
        return _train(prepared, base_model, use_cpu=on_cpu, progress=progress, start=start)


def _train(
    prepared: Prepared, base_model: PreTrainedModel, *, use_cpu: bool, progress: Progress | None, start: float
) -> TrainResult:
    import torch
    from transformers import set_seed

    from ...adapter import Base
    from ..model.tuned import tune
    from ..output.card import model_card
    from ..output.directory import CARD, FIGURES
    from .callbacks import Run, held_out_metrics
    from .checkpoints import clear, data_fingerprint, identity, weights_fingerprint
    from .trainer import build_trainer, check_isolated

    recipe = prepared.recipe
    base = Base(models.canonical_name(recipe.model), models.config_fingerprint(base_model.config))
    same = identity(
        recipe,
        base=base.name,
        fingerprint=base.fingerprint,
        weights=weights_fingerprint(base_model),
        data=data_fingerprint(prepared.train.examples),
    )
    checkpoint = _checkpoint(recipe, same)
    set_seed(recipe.seed)
    tuned = tune(base_model, recipe)
    trainable = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    session = Run(recipe, base, same, progress)
    trainer = build_trainer(
        tuned,
        session,
        tokenizer=prepared.tokenizer,
        train=prepared.train.examples,
        held_out=prepared.held_out.examples if prepared.held_out else None,
        use_cpu=use_cpu,
    )
    if recipe.packing:
        check_isolated(trainer, prepared.train.examples)
    outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seen: Any = trainer.accelerator.reduce(torch.tensor(session.tokens, device=trainer.args.device))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]  # of every step, resumed or not
    metrics = {"train_loss": statistics.fmean(losses), "loss": statistics.fmean(losses[-10:])} if losses else {}
    if prepared.held_out is not None:
        metrics |= {f"eval_{name}": value for name, value in held_out_metrics(trainer.evaluate()).items()}
    result = TrainResult(
        adapter=Path(recipe.output),
        metrics=metrics,
        steps=outcome.global_step,
        seconds=round(time.perf_counter() - start, 3),
        examples=len(prepared.train),
        tokens=int(seen),
        trainable=trainable,
        truncated=prepared.train.truncated,
        dropped=prepared.train.dropped,
        resumed_from=int(checkpoint.name.rpartition("-")[2]) if checkpoint else None,
        classes=prepared.classes,
    )
    session.extra_files = {
        CARD: model_card(result, recipe, base).encode(),
        FIGURES: json.dumps(figures(result), indent=2, ensure_ascii=False).encode(),
    }
    trainer.save_model(recipe.output)
    if trainer.is_world_process_zero() and not recipe.keep_checkpoints:
        clear(recipe.run_dir)
    return result


def figures(result: TrainResult) -> dict[str, Any]:
    """A result as JSON values."""
    return vars(result) | {"adapter": str(result.adapter), "metrics": dict(result.metrics)}


def _checkpoint(recipe: Recipe, same: Mapping[str, Any]) -> Path | None:
    """Where to go on from, checked; without `resume`, what an earlier run left is cleared away."""
    from .checkpoints import check_same, clear, last_complete

    found = last_complete(recipe.run_dir)
    if recipe.resume:
        if found is None:
            log.warning("no complete checkpoint in %s: the run starts at the beginning", recipe.run_dir)
        else:
            check_same(found, same)
        return found
    if found is not None:
        log.warning("starting over: %s of an unfinished run is deleted (resume: true would continue it)", found)
    if int(os.environ.get("RANK", "0")) == 0:
        clear(recipe.run_dir)
    return None
