"""Completions in OpenAI's shapes.

choice = completion_choice(vocabulary, 0, completion, echo="")
choice = chat_choice(vocabulary, 0, completion)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...engine.request import Completion, TokenLogprob
from .vocabulary import Vocabulary


def finish_reason(completion: Completion) -> str:
    """OpenAI's word for how an answer ended."""
    return completion.finish_reason if completion.finish_reason in ("stop", "length") else "stop"


def completion_choice(
    vocabulary: Vocabulary,
    index: int,
    completion: Completion,
    *,
    echo: str = "",
    echo_ids: Sequence[int] = (),
    generated: bool = True,
) -> dict[str, Any]:
    """One choice of /v1/completions. `echo` is the prompt's text, `generated` False leaves the answer out."""
    logprobs = None
    if completion.logprobs is not None:
        known: list[TokenLogprob | None] = list(completion.prompt_logprobs or ())
        ids = list(echo_ids[: len(known)])
        if generated:
            known += completion.logprobs
            ids += completion.token_ids[: len(completion.logprobs)]
        logprobs = completion_logprobs(vocabulary, ids, known)
    return {
        "index": index,
        "text": echo + (completion.text if generated else ""),
        "logprobs": logprobs,
        "finish_reason": finish_reason(completion) if generated else "length",
    }


def completion_logprobs(
    vocabulary: Vocabulary, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob | None], *, offset: int = 0
) -> dict[str, list]:
    """The legacy shape: four lists, one entry a token; the first token of a prompt has none."""
    tokens = [vocabulary.text(token_id) for token_id in token_ids]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [None if one is None else one.logprob for one in logprobs],
        "top_logprobs": [
            None if one is None else {vocabulary.text(other): value for other, value in reversed(_with_chosen(one))}
            for one in logprobs
        ],
        "text_offset": offsets,
    }


def _with_chosen(one: TokenLogprob) -> list[tuple[int, float]]:
    """The alternatives and the chosen token, which the legacy shape always lists."""
    top = list(one.top)
    return top if any(other == one.token_id for other, _ in top) else [*top, (one.token_id, one.logprob)]


def chat_choice(vocabulary: Vocabulary, index: int, completion: Completion) -> dict[str, Any]:
    """One choice of /v1/chat/completions."""
    return {
        "index": index,
        "message": {"role": "assistant", "content": completion.text, "refusal": None},
        "logprobs": None if completion.logprobs is None else chat_logprobs(vocabulary, completion.logprobs),
        "finish_reason": finish_reason(completion),
    }


def chat_logprobs(vocabulary: Vocabulary, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """One entry a token, each with its bytes and its alternatives."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": vocabulary.text(token_id),
            "logprob": max(logprob, -9999.0),
            "bytes": list(vocabulary.bytes(token_id)),
        }

    content = [
        {**entry(one.token_id, one.logprob), "top_logprobs": [entry(*other) for other in one.top]} for one in logprobs
    ]
    return {"content": content, "refusal": None}
