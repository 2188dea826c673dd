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
from typing import TYPE_CHECKING, Any

import torch

from ... import models
from ...adapter import Adapter
from ...errors import ModelError, RecipeError
from ...modules import attached, merge, unmerge
from ..data.prepared import Prepared, check_head, load_base, padding, prepare
from ..model.loss import answer_logits, pad_batch
from ..model.tuned import borrowed
from .directory import FIGURES, LORA, ROAD
from .metrics import classification_metrics, regression_metrics
from .pair import is_pair, load_pair

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..recipe import Recipe

log = logging.getLogger("roadkit.evaluate")


@dataclass(frozen=True)
class Comparison:
    """`rows`: base, tuned and merged (not on a quantised base) → metric → value, over `examples` held-out rows.

    causal            loss (nats a token), perplexity, token_accuracy; over all loss-bearing tokens, each counted once
    classification    loss, accuracy, f1, matthews; the base has the head with which training began, an untrained one
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
    if (model is None) != (tokenizer is None):
        raise RecipeError("give model and tokenizer together, or neither")
    path = Path(recipe.output)
    paired = is_pair(path)
    adapter = Adapter.load(path / ROAD if paired else path)
    prepared = prepare(recipe, model=model, tokenizer=tokenizer)
    _check_classes(path, prepared)
    base = model if model is not None else load_base(prepared, device=models.best_device())
    check_head(prepared, base)
    rows = {}
    with borrowed(base), padding(prepared.tokenizer, base):
        base.eval()
        rows["base"] = _score(base, prepared)
        with _tuned(base, path, adapter, paired) as tuned:
            rows["tuned"] = _score(tuned, prepared)
        try:
            with _merged(base, path, adapter, paired, lent=model is not None) as merged:
                rows["merged"] = _score(merged, prepared)
        except ModelError as error:  # a quantised base, which cannot be merged into
            log.warning("no row 'merged': %s", error)
    assert prepared.held_out is not None, "has_eval was checked"
    return Comparison(recipe.task, path, len(prepared.held_out), rows)


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
    """The rotation in the weights, then the LoRA; a lent model's originals are kept, so that leaving restores every bit."""
    merge(model, adapter, keep_originals=lent)
    try:
        if not paired:
            yield model
            return
        from peft import PeftModel

        with borrowed(model):
            around = PeftModel.from_pretrained(model, str(path / LORA))
            around.merge_adapter()
            yield around
    finally:
        if lent:
            unmerge(model, adapter)


@torch.no_grad()
def _score(model: Any, prepared: Prepared) -> dict[str, float]:
    assert prepared.held_out is not None, "has_eval was checked"
    recipe = prepared.recipe
    examples = sorted(prepared.held_out.examples, key=lambda example: len(example["input_ids"]))
    size = recipe.eval_batch_size or recipe.batch_size
    batches = [examples[i : i + size] for i in range(0, len(examples), size)]
    with torch.autocast(model.device.type, torch.bfloat16, enabled=recipe.bf16):
        return _causal(model, prepared, batches) if recipe.task == "causal" else _labels(model, prepared, batches)


def _causal(model: Any, prepared: Prepared, batches: list[list[dict[str, Any]]]) -> dict[str, float]:
    loss, right, count = 0.0, 0, 0
    for rows in batches:
        batch = pad_batch(list(rows), prepared.tokenizer.pad_token_id)  # type: ignore[arg-type]
        logits, targets = answer_logits(model, {key: value.to(model.device) for key, value in batch.items()})
        loss += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        right += int((logits.argmax(-1) == targets).sum())
        count += len(targets)
    mean = loss / count
    return {"loss": mean, "perplexity": math.exp(min(mean, 700.0)), "token_accuracy": right / count}


def _labels(model: Any, prepared: Prepared, batches: list[list[dict[str, Any]]]) -> dict[str, float]:
    scores, gold = [], []
    for rows in batches:
        batch = dict(prepared.tokenizer.pad([dict(row) for row in rows], return_tensors="pt"))
        gold.append(batch.pop("labels"))
        scores.append(model(**{key: value.to(model.device) for key, value in batch.items()}).logits.float().cpu())
    logits, labels = torch.cat(scores), torch.cat(gold)
    if prepared.recipe.task == "regression":
        predicted = logits.squeeze(-1)
        loss = torch.nn.functional.mse_loss(predicted, labels.float())
        return {"loss": float(loss), **regression_metrics(predicted.numpy(), labels.float().numpy())}
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return {"loss": float(loss), **classification_metrics(logits.argmax(-1).numpy(), labels.numpy())}


def _check_classes(path: Path, prepared: Prepared) -> None:
    """The classes of the data must be those of the trained head, in the same order."""
    try:
        trained = json.loads((path / FIGURES).read_text())["classes"]
    except (OSError, ValueError, KeyError):
        return  # written by something else: the head's size is checked when it is attached
    if trained != prepared.classes:
        raise RecipeError(f"{path} was trained for the classes {trained}, the data has {prepared.classes}")
