"""roadkit's requests in vLLM's words, and vLLM's outputs in roadkit's.

parameters = sampling_params(Request(prompt="Hello", temperature=0.8, top_k=20))
chunk = to_chunk(output, pieces, parameters)        # `pieces`: the chunks of this request so far
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..engine.request import Chunk, Completion, FinishReason, Request, TokenLogprob
from ..errors import RequestError

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "cancelled"}


def sampling_params(request: Request) -> Any:
    """vLLM's `SamplingParams` of a request. Raises `RequestError` for what vLLM cannot do."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    if request.no_repeat_ngram_size:
        raise RequestError(
            f"no_repeat_ngram_size {request.no_repeat_ngram_size}: vLLM has no such option; leave it out, or use the "
            "embedded engine"
        )
    try:
        schema = None if request.json_schema is None else StructuredOutputsParams(json=request.json_schema)
        return SamplingParams(
            max_tokens=request.max_tokens,
            min_tokens=request.min_tokens,
            temperature=request.temperature,
            top_k=request.top_k or 0,
            top_p=request.top_p,
            min_p=request.min_p,
            repetition_penalty=request.repetition_penalty,
            seed=request.seed,
            stop=list(request.stop),
            stop_token_ids=list(request.stop_token_ids),
            logprobs=request.logprobs,
            prompt_logprobs=request.prompt_logprobs,
            ignore_eos=request.ignore_eos,
            structured_outputs=schema,
            output_kind=RequestOutputKind.DELTA,
        )
    except ValueError as error:
        raise RequestError(str(error)) from error


def to_chunk(output: Any, pieces: Sequence[Chunk], parameters: Any) -> Chunk:
    """What is new in a `RequestOutput`, as a chunk. The last chunk brings the completion.

    pieces      the request's chunks so far
    parameters  its `SamplingParams`
    """
    piece = output.outputs[0]
    text, token_ids = piece.text, list(piece.token_ids)
    logprobs = _logprobs(piece.logprobs, token_ids, parameters.logprobs)
    if not output.finished:
        return Chunk(text, token_ids, logprobs, None)
    prompt_logprobs = None
    if parameters.prompt_logprobs is not None and output.prompt_logprobs is not None:
        known = zip(output.prompt_token_ids, output.prompt_logprobs, strict=True)
        prompt_logprobs = [_logprob(token, row, parameters.prompt_logprobs) if row else None for token, row in known]
    parts = [*pieces, Chunk(text, token_ids, logprobs, None)]
    reason = _REASONS.get(piece.finish_reason or "", "error")
    completion = Completion(
        text="".join(part.text for part in parts),
        token_ids=[token for part in parts for token in part.token_ids],
        finish_reason=reason,
        logprobs=[item for part in parts for item in part.logprobs] if parameters.logprobs is not None else None,
        prompt_logprobs=prompt_logprobs,
        prompt_tokens=len(output.prompt_token_ids or ()),
        cached_tokens=output.num_cached_tokens or 0,
        error=f"vLLM ended the request with {piece.finish_reason!r}" if reason == "error" else None,
    )
    return Chunk(text, token_ids, logprobs, completion)


def _logprobs(rows: Any, token_ids: list[int], count: int | None) -> list[TokenLogprob]:
    if rows is None or count is None:
        return []
    return [_logprob(token, row, count) for token, row in zip(token_ids, rows, strict=True)]


def _logprob(token: int, row: Any, count: int) -> TokenLogprob:
    likeliest = sorted(row.items(), key=lambda item: item[1].rank)[:count]
    return TokenLogprob(token, row[token].logprob, tuple((other, found.logprob) for other, found in likeliest))
