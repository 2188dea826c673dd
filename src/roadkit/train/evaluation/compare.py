"""Base, tuned and merged model side by side, on a recipe's held-out rows.

comparison = compare(load_recipe("recipes/completion.yaml"))
comparison.rows["tuned"]["perplexity"], comparison.rows["base"]["perplexity"]
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy, mse_loss
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ... import models
from ...adapter import Adapter
from ...errors import ModelError, RecipeError
from ...merging import merge, unmerge
from ...modules import attached
from ..data.batches import pad_batch
from ..data.encoded import Encoded
from ..data.training_data import TrainingData, prepare_data
from ..model.base import check_both_or_neither, check_head, load_base, padding
from ..model.borrowed import borrowed
from ..model.loss import answer_logits
from ..output.directory import FIGURES, LORA, ROAD
from ..output.pair import is_pair, load_pair
from ..recipe import Recipe
from .metrics import label_metrics

log = logging.getLogger("roadkit.train")


@dataclass(frozen=True)
class Comparison:
    """`rows`: base, tuned and merged (unless the base is quantised) → metric → value, over `examples` held-out rows.

    causal            loss (nats a token), perplexity, token_accuracy; over all loss-bearing tokens, each counted once
    classification    loss, accuracy, f1, matthews; the base has the untrained head with which training began
    regression        loss (mean squared error), pearson, spearman
    """

    task: str
    adapter: Path
    examples: int
    rows: Mapping[str, Mapping[str, float]]


def compare(
    recipe: Recipe, *, model: PreTrainedModel | None = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> Comparison:
    """Evaluate the recipe's model without, with and merged with the adapter at `recipe.output`.

    model, tokenizer    already loaded (both or none); afterwards the model is as it was before

    Raises `RecipeError` without held-out rows, `AdapterError` for an adapter that is missing or does not fit.
    """
    if not recipe.has_eval:
        raise RecipeError("there is nothing to compare on: the recipe needs eval_data or eval_fraction")
    check_both_or_neither(model, tokenizer)
    path = Path(recipe.output)
    paired = is_pair(path)
    adapter = Adapter.load(path / ROAD if paired else path)
    data = prepare_data(recipe, model=model, tokenizer=tokenizer)
    assert data.held_out is not None, "has_eval was checked"
    _check_classes(path, data)
    base = model if model is not None else load_base(data, device=models.best_device())
    check_head(data, base)
    rows = {}
    with borrowed(base), padding(data.tokenizer, base):
        base.eval()
        rows["base"] = _score(base, data, data.held_out)
        with _tuned(base, path, adapter, paired) as tuned:
            rows["tuned"] = _score(tuned, data, data.held_out)
        try:
            with _merged(base, path, adapter, paired, lent=model is not None) as merged:
                rows["merged"] = _score(merged, data, data.held_out)
        except ModelError as error:  # a quantised base, which cannot be merged into
            log.warning("no row 'merged': %s", error)
    return Comparison(recipe.task, path, len(data.held_out), rows)


@contextmanager
def _tuned(model: PreTrainedModel, path: Path, adapter: Adapter, paired: bool) -> Iterator[Any]:
    if not paired:
        with attached(model, adapter):
            yield model
        return
    with borrowed(model):
        yield load_pair(model, path)


@contextmanager
def _merged(model: PreTrainedModel, path: Path, adapter: Adapter, paired: bool, *, lent: bool) -> Iterator[Any]:
    """The rotation in the weights, then the LoRA. The originals of a lent model are kept, so that it gets every bit back."""
    merge(model, adapter, keep_originals=lent)
    try:
        if not paired:
            yield model
            return
        with borrowed(model):
            around = PeftModel.from_pretrained(model, str(path / LORA))
            around.merge_adapter()
            yield around
    finally:
        if lent:
            unmerge(model, adapter)


@torch.no_grad()
def _score(model: Any, data: TrainingData, rows: Encoded) -> dict[str, float]:
    recipe = data.recipe
    examples = sorted(rows.examples, key=lambda example: len(example["input_ids"]))
    size = recipe.eval_batch_size or recipe.batch_size
    batches = [examples[i : i + size] for i in range(0, len(examples), size)]
    with torch.autocast(model.device.type, torch.bfloat16, enabled=recipe.bf16):
        return _score_answers(model, data, batches) if recipe.task == "causal" else _score_labels(model, data, batches)


def _score_answers(model: Any, data: TrainingData, batches: list[list[dict[str, Any]]]) -> dict[str, float]:
    loss, right, count = 0.0, 0, 0
    for rows in batches:
        batch = pad_batch(rows, data.tokenizer.pad_token_id)  # type: ignore[arg-type]
        logits, targets = answer_logits(model, {key: value.to(model.device) for key, value in batch.items()})
        loss += float(cross_entropy(logits, targets, reduction="sum"))
        right += int((logits.argmax(-1) == targets).sum())
        count += len(targets)
    mean = loss / count
    return {"loss": mean, "perplexity": math.exp(min(mean, 700.0)), "token_accuracy": right / count}


def _score_labels(model: Any, data: TrainingData, batches: list[list[dict[str, Any]]]) -> dict[str, float]:
    scores, gold = [], []
    for rows in batches:
        batch = dict(data.tokenizer.pad([dict(row) for row in rows], return_tensors="pt"))
        gold.append(batch.pop("labels"))
        scores.append(model(**{key: value.to(model.device) for key, value in batch.items()}).logits.float().cpu())
    logits, labels = torch.cat(scores), torch.cat(gold)
    if data.recipe.task == "regression":
        labels = labels.float()
        loss = mse_loss(logits.squeeze(-1), labels)
    else:
        loss = cross_entropy(logits, labels)
    return {"loss": float(loss), **label_metrics(data.recipe.task, logits.numpy(), labels.numpy())}


def _check_classes(path: Path, data: TrainingData) -> None:
    """The classes of the data must be those of the trained head, in the same order."""
    try:
        trained = json.loads((path / FIGURES).read_text())["classes"]
    except (OSError, ValueError, KeyError):
        return  # written by something else: the head's size is checked when it is attached
    if trained != data.classes:
        raise RecipeError(f"{path} was trained for the classes {trained}, the data has {data.classes}")
