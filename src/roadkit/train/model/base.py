"""The base model of a run: loaded with the head that the task needs, on a device, with a padding token.

base = load_base(data)               # data: what `prepare_data` gave
check_head(data, base)
with padding(data.tokenizer, base): ...
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ... import models
from ...errors import RecipeError
from ..data.training_data import TrainingData

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEW_HEADS = ("classifier", "score", "pre_classifier", "classification_head", "logits_proj", "sequence_summary")


def check_both_or_neither(model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Raises `RecipeError` for a loaded model without its tokenizer, and for a tokenizer alone."""
    if (model is None) != (tokenizer is None):
        raise RecipeError("give model and tokenizer together, or neither")


def training_device(model: PreTrainedModel | None) -> str:
    """A loaded model stays on its device; another goes to the GPU if there is one. → "cuda", "cpu", …"""
    return model.device.type if model is not None else models.best_device()


def load_base(data: TrainingData, *, device: str = "cpu") -> PreTrainedModel:
    """The base model with the head that the task needs; a new head depends on the seed alone."""
    from transformers import set_seed

    recipe = data.recipe
    dtype = "bfloat16" if recipe.bf16 else "float32"
    set_seed(recipe.seed)
    if recipe.task == "causal":
        return models.load_causal(recipe.model, dtype=dtype, device=device)
    with _new_head_expected():
        return models.load_encoder(recipe.model, num_labels=data.num_labels, dtype=dtype, device=device)


def check_head(data: TrainingData, model: PreTrainedModel) -> None:
    """Raises `RecipeError` for a classifier that has not as many outputs as there are classes."""
    outputs = getattr(model.config, "num_labels", None)
    if data.recipe.task != "causal" and outputs != data.num_labels:
        raise RecipeError(
            f"the model has {outputs} outputs, the data {data.num_labels} classes: "
            f"load it with num_labels={data.num_labels}"
        )


@contextmanager
def padding(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Iterator[None]:
    """Inside, tokenizer and model have a padding token: the end token if they have none of their own.

    Afterwards the tokenizer is as it was; the model's configuration is left to `borrowed`.
    """
    before = tokenizer.pad_token
    if before is None:
        if tokenizer.eos_token is None:
            raise RecipeError("the tokenizer has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    try:
        yield
    finally:
        tokenizer.pad_token = before


@contextmanager
def _new_head_expected() -> Iterator[None]:
    """Inside, transformers does not report that the head of a classifier is new: a base model has none yet.

    Its load report is shown as soon as it tells anything else.
    """
    logger = logging.getLogger("transformers.modeling_utils")

    def says_more(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        rows = re.findall(r"^(\S+)\s*\|\s*([A-Z]{2,})", text, re.MULTILINE)
        expected = all(status == "MISSING" and name.split(".")[0] in NEW_HEADS for name, status in rows)
        return "LOAD REPORT" not in text or not rows or not expected

    logger.addFilter(says_more)
    try:
        yield
    finally:
        logger.removeFilter(says_more)
