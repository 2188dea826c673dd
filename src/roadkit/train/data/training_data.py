"""A recipe's data: read, checked and tokenised.

data = prepare_data(recipe)          # needs tokenizer and configuration only, so mistakes show in a second
len(data.train), data.layout.name    # 72, "prompt_completion"
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ... import models
from ...errors import RecipeError
from ..recipe import Recipe
from .encoded import Encoded, encode
from .formats import RowLayout, detect
from .labels import Classes
from .tables import Table, read_table, split_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("roadkit.train")


@dataclass(frozen=True)
class TrainingData:
    """What a run knows before it needs the model. `columns` are those of the training rows as they were read."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    layout: RowLayout
    columns: list[str]
    train: Encoded
    held_out: Encoded | None
    max_length: int

    @property
    def classes(self) -> Classes:
        """The classes of a classification, by name or number."""
        return self.layout.classes

    @property
    def num_labels(self) -> int:
        """Outputs of the head: one a class, and 1 for regression."""
        if self.classes is None:
            return 1
        return self.classes if isinstance(self.classes, int) else len(self.classes)


def prepare_data(
    recipe: Recipe,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    table: Table | None = None,
) -> TrainingData:
    """Read, check and tokenise a recipe's data. Needs the tokenizer and the configuration, not the weights.

    model, tokenizer    already loaded
    table               the training rows, if they have been read already

    Raises `RecipeError` for data that cannot be read or learnt from.
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
    train = encode(table, layout, tokenizer, recipe, max_length=max_length)
    held_out = encode(held, layout, tokenizer, recipe, max_length=max_length) if held is not None else None
    for name, encoded in (("training", train), ("held-out", held_out)):
        if encoded is not None and encoded.truncated:
            log.warning("%d of %d %s rows were cut to %d tokens", encoded.truncated, len(encoded), name, max_length)
        if encoded is not None and encoded.dropped:
            log.warning("%d %s rows had no answer left to learn and are left out", encoded.dropped, name)
        if encoded is not None and encoded.unmarked:
            log.warning("%d answers bear no loss: the chat template rewrites earlier turns", encoded.unmarked)
    return TrainingData(recipe, tokenizer, layout, table.columns, train, held_out, max_length)


def _max_length(recipe: Recipe, config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens a row at most: the recipe's, within what the model has positions for."""
    text = config.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "n_ctx")]
    limits.append(tokenizer.model_max_length)  # "none" is written as a huge number
    context = min((limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**8), default=10**8)
    if recipe.max_length is not None and recipe.max_length > context:
        raise RecipeError(f"max_length {recipe.max_length} exceeds the {context} tokens that {recipe.model} can read")
    return recipe.max_length or context
