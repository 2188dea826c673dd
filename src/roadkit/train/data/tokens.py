"""Rows → token ids with the tokens that bear the loss marked; what was cut or left out is counted.

    encoded = encode(table, layout, tokenizer, recipe, max_length=512)
    encoded.examples[0]        # {"input_ids": [...], "labels": [-100, -100, 345, ...]}

A prompt is tokenised as it will be at inference: alone, up to where the answer begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import RecipeError
from ..recipe import Recipe
from .formats import Dialogue, Layout, Passage, read_example
from .labels import read_label
from .tables import Table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a token that bears no loss


@dataclass(frozen=True)
class Encoded:
    """Tokenised rows. `truncated` were cut to max_length; `dropped` had no loss-bearing token left and are not here.

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
    table: Table,
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    *,
    max_length: int,
    labels: Sequence[str] | int | None = None,
) -> Encoded:
    """Tokenise a table. `labels`: the names of the classes, or their number; None for regression and causal.

    Raises `RecipeError` for a row that cannot be read, that is too long where `truncate` is false, and where nothing
    is left to learn from.
    """
    if layout.name == "sentences":
        return _encode_sentences(table, layout, tokenizer, recipe, max_length, labels)
    marks = [
        _marked(read_example(table, i, layout, recipe), tokenizer, recipe.completion_only) for i in range(len(table))
    ]
    unmarked = sum(skipped for _, _, skipped in marks)
    examples, truncated = [], 0
    for i, (ids, bears, _) in enumerate(marks):
        if len(ids) > max_length:
            _refuse_long(table, i, len(ids), recipe, max_length)
            truncated += 1
        ids, bears = ids[:max_length], bears[:max_length]
        if any(bears[1:]):  # the first token has nothing before it that could predict it
            targets = [token if bear else IGNORED for token, bear in zip(ids, bears, strict=True)]
            examples.append({"input_ids": ids, "labels": targets})
    if not examples:
        reason = (
            f"max_length {max_length} cuts every answer off"
            if truncated
            else "the chat template renders prompts differently once they are answered: completion_only: false counts "
            "whole dialogues"
            if unmarked
            else "every answer is empty"
        )
        raise RecipeError(f"{table.origin}: no row has anything to learn; {reason}")
    return Encoded(examples, truncated, len(table) - len(examples), unmarked)


def _encode_sentences(table, layout, tokenizer, recipe, max_length, labels) -> Encoded:
    examples, truncated = [], 0
    paired = layout.columns["sentence2"] in table.columns
    for i in range(len(table)):
        texts = [table.text(i, layout.columns["sentence1"])]
        if paired:
            texts.append(table.text(i, layout.columns["sentence2"]))
        encoded = tokenizer(*texts, verbose=False)
        if len(encoded["input_ids"]) > max_length:
            _refuse_long(table, i, len(encoded["input_ids"]), recipe, max_length)
            truncated += 1
            encoded = tokenizer(*texts, truncation=True, max_length=max_length)
        label = read_label(table, i, layout.columns["label"], labels)
        examples.append({**encoded, "labels": label})
    return Encoded(examples, truncated)


def _refuse_long(table: Table, index: int, length: int, recipe: Recipe, max_length: int) -> None:
    if not recipe.truncate:
        raise RecipeError(
            f"{table.where(index)}: {length} tokens, more than max_length {max_length}; truncate: true would cut it"
        )


def _marked(
    example: Dialogue | Passage, tokenizer: PreTrainedTokenizerBase, completion_only: bool
) -> tuple[list[int], list[bool], int]:
    """→ token ids, whether each bears the loss, and the number of answers that could not be marked."""
    if isinstance(example, Passage):
        return *_mark_passage(example, tokenizer, completion_only), 0
    text, spans, skipped = _rendered(example, tokenizer)
    if not completion_only:
        ids = _ids(tokenizer, text)
        return ids, [True] * len(ids), 0
    ids: list[int] = []
    bears: list[bool] = []
    end = 0
    for start, stop in spans:
        _extend(ids, bears, tokenizer, text[end:start], text[:start], bear=False)
        _extend(ids, bears, tokenizer, text[start:stop], text[:stop], bear=True)
        end = stop
    return ids, bears, skipped


def _mark_passage(
    example: Passage, tokenizer: PreTrainedTokenizerBase, completion_only: bool
) -> tuple[list[int], list[bool]]:
    ids = _leading_tokens(tokenizer)
    bears = [not completion_only] * len(ids)
    lead = len(ids)
    prompt: list[int] = []
    marks: list[bool] = []
    _extend(prompt, marks, tokenizer, example.prompt, example.prompt, bear=not completion_only)
    _extend(prompt, marks, tokenizer, example.answer, example.prompt + example.answer, bear=True)
    ids, bears = ids + prompt, bears + marks
    if tokenizer.eos_token_id is not None and len(ids) > lead and example.answer:
        ids, bears = [*ids, tokenizer.eos_token_id], [*bears, True]
    return ids, bears


def _rendered(example: Dialogue, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[tuple[int, int]], int]:
    """The dialogue as the chat template writes it, and from where to where its answers go, end-of-turn token included.

    An answer begins where the template would have the model begin. Where a template rewrites earlier turns as the
    dialogue grows (reasoning models drop their thoughts), such answers are not marked, but counted.
    """
    render = tokenizer.apply_chat_template
    messages = example.messages
    text = str(render(messages, tokenize=False)).rstrip()
    spans, skipped = [], 0
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or i < example.first_answer:
            continue
        before = str(render(messages[:i], tokenize=False, add_generation_prompt=True))
        after = str(render(messages[: i + 1], tokenize=False)).rstrip()
        if text.startswith(before) and text.startswith(after) and len(before) < len(after):
            spans.append((len(before), len(after)))
        else:
            skipped += 1
    return text, spans, skipped


def _extend(
    ids: list[int], bears: list[bool], tokenizer: PreTrainedTokenizerBase, piece: str, so_far: str, *, bear: bool
) -> None:
    """Add a piece of text. Tokens before it stay as they are, even where a token could reach across the boundary."""
    if not piece:
        return
    whole = _ids(tokenizer, so_far)
    new = whole[len(ids) :] if whole[: len(ids)] == ids else _ids(tokenizer, piece)
    ids += new
    bears += [bear] * len(new)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # type: ignore[arg-type]


def _leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before plain text: a beginning-of-sequence token, or nothing."""
    if tokenizer.bos_token_id is None:
        return []
    first = list(tokenizer("a", verbose=False)["input_ids"])[:1]  # type: ignore[arg-type]
    return first if first == [tokenizer.bos_token_id] else []
