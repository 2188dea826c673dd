"""Everything before the first step: data read, checked and tokenised, and the base model with the right head.

prepared = prepare(recipe)           # needs tokenizer and configuration only, so mistakes show in a second
model = load_base(prepared)
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ... import models
from ...errors import RecipeError
from ..recipe import Recipe
from .formats import Layout, detect
from .labels import find_classes
from .tables import Table, read_table, split_table
from .tokens import Encoded, encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("roadkit.train")
NEW_HEADS = ("classifier", "score", "pre_classifier", "classification_head", "logits_proj", "sequence_summary")


@dataclass(frozen=True)
class Prepared:
    """Everything known before the model is needed: the data read, checked and tokenised."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    columns: list[str]
    train: Encoded
    held_out: Encoded | None
    classes: list[str] | int | None
    max_length: int

    @property
    def num_labels(self) -> int:
        """Outputs of the head: 1 for regression."""
        return 1 if self.classes is None else self.classes if isinstance(self.classes, int) else len(self.classes)


def prepare(
    recipe: Recipe,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    table: Table | None = None,
) -> Prepared:
    """Read, check and tokenise a recipe's data. Needs the tokenizer and the configuration, not the weights.

    table    the training rows, where they have been read already
    """
    if table is None:
        table = read_table(recipe.data, split=recipe.split, limit=recipe.max_examples)
    held: Table | None = None
    if recipe.eval_data is not None:
        held = read_table(recipe.eval_data, split=recipe.eval_split, limit=recipe.max_examples)
    elif recipe.eval_fraction:
        table, held = split_table(table, fraction=recipe.eval_fraction, seed=recipe.seed)
    tokenizer = tokenizer or models.load_tokenizer(recipe.model)
    max_length = _max_length(recipe, model.config if model is not None else models.load_config(recipe.model), tokenizer)
    layout = detect(table, recipe, chat=bool(tokenizer.chat_template))
    classes = find_classes(table, layout.columns["label"], recipe) if layout.name == "sentences" else None
    options = {"max_length": max_length, "labels": classes}
    train = encode(table, layout, tokenizer, recipe, **options)
    held_out = encode(held, layout, tokenizer, recipe, **options) if held is not None else None
    for name, encoded in (("training", train), ("held-out", held_out)):
        if encoded is not None and encoded.truncated:
            log.warning("%d of %d %s rows were cut to %d tokens", encoded.truncated, len(encoded), name, max_length)
        if encoded is not None and encoded.dropped:
            log.warning("%d %s rows had no answer left to learn and are left out", encoded.dropped, name)
        if encoded is not None and encoded.unmarked:
            log.warning("%d answers bear no loss: the chat template rewrites earlier turns", encoded.unmarked)
    return Prepared(recipe, tokenizer, layout, table.columns, train, held_out, classes, max_length)


def load_base(prepared: Prepared, *, device: str = "cpu") -> PreTrainedModel:
    """The base model with the head that the task needs; a new head depends on the seed alone."""
    from transformers import set_seed

    recipe = prepared.recipe
    dtype = "bfloat16" if recipe.bf16 else "float32"
    set_seed(recipe.seed)
    if recipe.task == "causal":
        return models.load_causal(recipe.model, dtype=dtype, device=device)
    with _expecting_new_head():
        return models.load_encoder(recipe.model, num_labels=prepared.num_labels, dtype=dtype, device=device)


def check_head(prepared: Prepared, model: PreTrainedModel) -> None:
    """Has a loaded classifier as many outputs as there are classes?"""
    outputs = getattr(model.config, "num_labels", None)
    if prepared.recipe.task != "causal" and outputs != prepared.num_labels:
        raise RecipeError(
            f"the model has {outputs} outputs, the data {prepared.num_labels} classes: "
            f"load it with num_labels={prepared.num_labels}"
        )


def _max_length(recipe: Recipe, config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens a row at most: the recipe's, within what the model has positions for."""
    text = config.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "n_ctx")]
    limits.append(tokenizer.model_max_length)  # "none" is written as a huge number
    context = min((limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**8), default=10**8)
    if recipe.max_length is not None and recipe.max_length > context:
        raise RecipeError(f"max_length {recipe.max_length} exceeds the {context} tokens that {recipe.model} can read")
    return recipe.max_length or context


def use_cpu(model: PreTrainedModel | None) -> bool:
    """A model that was handed in stays on its device; others go where there is a GPU."""
    return (model.device.type if model is not None else models.best_device()) == "cpu"


@contextmanager
def padding(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Iterator[None]:
    """A padding token for the length of a run, the end token where there is none of its own."""
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
def _expecting_new_head() -> Iterator[None]:
    """A base model has no classifier yet; transformers' table that says so is shown only if it says more."""
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
