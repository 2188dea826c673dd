"""One example as token ids, each with whether it bears the loss.

    marked = mark(Passage("2+2=", "4"), tokenizer, completion_only=True)
    marked.ids, marked.bears          # [17, 10, 17, 28, 19, 2], [False, False, False, False, True, True]

A prompt is tokenised as it will be at inference: alone, up to the point at which the answer begins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .examples import Dialogue, Passage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a token that bears no loss


@dataclass(frozen=True)
class MarkedTokens:
    """Token ids, and for each whether it bears the loss.

    unmarked    answers left out of the loss, because the chat template rewrites earlier turns as a dialogue grows
    """

    ids: list[int]
    bears: list[bool]
    unmarked: int = 0


def mark(example: Dialogue | Passage, tokenizer: PreTrainedTokenizerBase, *, completion_only: bool) -> MarkedTokens:
    """Tokenise an example. The loss counts its answers alone with `completion_only`, else everything."""
    if isinstance(example, Dialogue):
        return _mark_dialogue(example, tokenizer, completion_only)
    return _mark_passage(example, tokenizer, completion_only)


def _mark_dialogue(example: Dialogue, tokenizer: PreTrainedTokenizerBase, completion_only: bool) -> MarkedTokens:
    """The rendered dialogue up to its last answer; up to its end if everything bears the loss."""
    text, answers, unmarked = _render(example, tokenizer)
    if not completion_only:
        return _mark_pieces([(text, True)], tokenizer)
    pieces, end = [], 0
    for start, stop in answers:
        pieces += [(text[end:start], False), (text[start:stop], True)]
        end = stop
    return replace(_mark_pieces(pieces, tokenizer), unmarked=unmarked)


def _mark_passage(example: Passage, tokenizer: PreTrainedTokenizerBase, completion_only: bool) -> MarkedTokens:
    """Prompt and answer, between the tokens with which this model begins and ends a text."""
    inner = _mark_pieces([(example.prompt, not completion_only), (example.answer, True)], tokenizer)
    first = _leading_tokens(tokenizer)
    last: list[int] = []
    if tokenizer.eos_token_id is not None and inner.ids and example.answer:
        last.append(tokenizer.eos_token_id)  # type: ignore[arg-type]
    bears = [not completion_only] * len(first) + inner.bears + [True] * len(last)
    return MarkedTokens(first + inner.ids + last, bears)


def _render(example: Dialogue, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[tuple[int, int]], int]:
    """→ the dialogue as the chat template writes it, where each answer begins and ends in it, and how many have no place.

    An answer begins after the template's generation prompt and ends after its end-of-turn token. Some templates rewrite
    earlier turns as the dialogue grows (reasoning models drop their thoughts): such answers have no place in the text.
    """
    render = tokenizer.apply_chat_template
    messages = example.messages
    text = str(render(messages, tokenize=False)).rstrip()
    answers, unmarked = [], 0
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or i < example.first_answer:
            continue
        before = str(render(messages[:i], tokenize=False, add_generation_prompt=True))
        after = str(render(messages[: i + 1], tokenize=False)).rstrip()
        if text.startswith(before) and text.startswith(after) and len(before) < len(after):
            answers.append((len(before), len(after)))
        else:
            unmarked += 1
    return text, answers, unmarked


def _mark_pieces(pieces: Iterable[tuple[str, bool]], tokenizer: PreTrainedTokenizerBase) -> MarkedTokens:
    """Consecutive pieces of a text, each with whether it bears the loss.

    A piece never changes the tokens before it: a token that would reach across the boundary is cut there.
    """
    ids: list[int] = []
    bears: list[bool] = []
    text = ""
    for piece, bear in pieces:
        if not piece:
            continue
        text += piece
        whole = _tokenise(text, tokenizer)
        new = whole[len(ids) :] if whole[: len(ids)] == ids else _tokenise(piece, tokenizer)
        ids += new
        bears += [bear] * len(new)
    return MarkedTokens(ids, bears)


def _tokenise(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # type: ignore[arg-type]


def _leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before plain text: a beginning-of-sequence token, or nothing."""
    if tokenizer.bos_token_id is None:
        return []
    first = list(tokenizer("a", verbose=False)["input_ids"])[:1]  # type: ignore[arg-type]
    return first if first == [tokenizer.bos_token_id] else []
