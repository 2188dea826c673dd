"""A table as token ids, ready for a trainer; rows that were cut or left out are counted.

encoded = encode(table, layout, tokenizer, recipe, max_length=512)
encoded.examples[0]        # {"input_ids": [...], "labels": [-100, -100, 345, ...]}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import RecipeError
from ..recipe import Recipe
from .examples import LabelledText
from .formats import RowLayout
from .tables import Row, Table
from .tokens import IGNORED, mark

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """Tokenised rows. For the causal task `labels` are token ids, else one class number or score a row.

    truncated   rows that were cut to max_length
    dropped     rows that are not here, because no token of theirs bears the loss
    unmarked    answers left out of the loss, because the chat template rewrites earlier turns as a dialogue grows
    """

    examples: list[dict[str, Any]]
    truncated: int = 0
    dropped: int = 0
    unmarked: int = 0

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def lengths(self) -> list[int]:
        """Tokens a row."""
        return [len(example["input_ids"]) for example in self.examples]

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def num_loss_tokens(self) -> int:
        """Tokens that bear the loss (for classification and regression: rows)."""
        return sum(
            sum(label != IGNORED for label in example["labels"]) if isinstance(example["labels"], list) else 1
            for example in self.examples
        )


def encode(
    table: Table, layout: RowLayout, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, *, max_length: int
) -> Encoded:
    """Tokenise a table.

    Raises `RecipeError` for a row that cannot be read, for one that is too long if `truncate` is false, and if no row
    has anything to learn.
    """
    if recipe.task != "causal":
        return _encode_labelled(table, layout, tokenizer, recipe, max_length)
    examples: list[dict[str, Any]] = []
    truncated, unmarked = 0, 0
    for row in table:
        example = layout.read(row)
        assert not isinstance(example, LabelledText), f"format {layout.name} for task causal"
        marked = mark(example, tokenizer, completion_only=recipe.completion_only)
        unmarked += marked.unmarked
        if len(marked.ids) > max_length:
            _check_may_be_cut(row, len(marked.ids), recipe, max_length)
            truncated += 1
        ids, bears = marked.ids[:max_length], marked.bears[:max_length]
        if any(bears[1:]):  # the first token has nothing before it that could predict it
            labels = [token if bear else IGNORED for token, bear in zip(ids, bears, strict=True)]
            examples.append({"input_ids": ids, "labels": labels})
    if not examples:
        if truncated:
            reason = f"max_length {max_length} cuts every answer off"
        elif unmarked:
            reason = (
                "the chat template renders prompts differently once they are answered: completion_only: false counts "
                "whole dialogues"
            )
        else:
            reason = "every answer is empty"
        raise RecipeError(f"{table.origin}: no row has anything to learn; {reason}")
    return Encoded(examples, truncated, len(table) - len(examples), unmarked)


def _encode_labelled(
    table: Table, layout: RowLayout, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, max_length: int
) -> Encoded:
    examples: list[dict[str, Any]] = []
    truncated = 0
    for row in table:
        example = layout.read(row)
        assert isinstance(example, LabelledText), f"format {layout.name} for task {recipe.task}"
        encoded = tokenizer(example.sentence1, example.sentence2, verbose=False)
        length = len(encoded["input_ids"])  # type: ignore[arg-type]
        if length > max_length:
            _check_may_be_cut(row, length, recipe, max_length)
            truncated += 1
            encoded = tokenizer(example.sentence1, example.sentence2, truncation=True, max_length=max_length)
        examples.append({**encoded, "labels": example.label})
    return Encoded(examples, truncated)


def _check_may_be_cut(row: Row, length: int, recipe: Recipe, max_length: int) -> None:
    if not recipe.truncate:
        raise RecipeError(
            f"{row.where}: {length} tokens, more than max_length {max_length}; truncate: true would cut it"
        )
