"""`POST /v1/completions` and `POST /v1/chat/completions`, streamed or not.

app.include_router(completions.router(service, backend))
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from ..backends.base import GeneratingBackend
from ..errors import ApiError
from ..service import Service
from . import responses
from .generation import Generation
from .requests import ChatRequest, CompletionRequest, GenerationRequest
from .sse import EventStream
from .vocabulary import Vocabulary


def router(service: Service, backend: GeneratingBackend) -> APIRouter:
    """The two generating routes."""
    routes, vocabulary = APIRouter(prefix="/v1"), Vocabulary(backend.tokenizer)

    @routes.post("/completions", response_model=None)
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Continue one or more prompts. `model` is an adapter expression."""
        if body.stream and body.echo and body.logprobs is not None:
            raise ApiError(400, "echo with logprobs comes in one piece; leave stream out", param="stream")
        generation = await Generation.begin(service, backend, request.state.caller, body)
        head = _head("cmpl", "text_completion", body.model)
        if body.stream:
            return EventStream(generation, _stream_text(head, body, generation, vocabulary), request)
        done, n = await generation.results(request), body.n or 1
        choices = [
            responses.completion_choice(
                vocabulary,
                index,
                completion,
                echo=generation.echoes[index // n],
                echo_ids=generation.prompt_ids[index // n],
                generated=body.max_tokens != 0,
            )
            for index, completion in enumerate(done)
        ]
        return JSONResponse({**head, "choices": choices, "usage": generation.usage})

    @routes.post("/chat/completions", response_model=None)
    async def chat(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation. `model` is an adapter expression."""
        count, limit = len(body.messages), service.settings.limits.max_messages
        if count > limit:
            raise ApiError(400, f"messages has {count} entries, at most {limit} are allowed", param="messages")
        generation = await Generation.begin(service, backend, request.state.caller, body)
        head = _head("chatcmpl", "chat.completion", body.model)
        if body.stream:
            head["object"] = "chat.completion.chunk"
            return EventStream(generation, _stream_chat(head, body, generation, vocabulary), request)
        done = await generation.results(request)
        choices = [responses.chat_choice(vocabulary, index, completion) for index, completion in enumerate(done)]
        return JSONResponse({**head, "choices": choices, "usage": generation.usage})

    return routes


def _head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    created = int(time.time())
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": created, "model": model}


async def _stream_text(
    head: dict[str, Any],
    body: CompletionRequest,
    generation: Generation,
    vocabulary: Vocabulary,
) -> AsyncIterator[dict[str, Any]]:
    n, started, offsets = body.n or 1, set[int](), dict[int, int]()
    async for index, chunk in generation.events():
        failed = generation.failure(index) if chunk.completion is not None else None
        if failed is not None:
            yield failed.body
            continue
        text, known, ids = chunk.text, list(chunk.logprobs), list(chunk.token_ids)
        if body.max_tokens == 0:
            text, known, ids = "", [], []
        if index not in started:
            started.add(index)
            text = generation.echoes[index // n] + text
        shaped = None
        if body.logprobs is not None and known:
            shaped = responses.completion_logprobs(vocabulary, ids[: len(known)], known, offset=offsets.get(index, 0))
            offsets[index] = offsets.get(index, 0) + sum(map(len, shaped["tokens"]))
        done = chunk.completion
        if not text and shaped is None and done is None:
            continue
        reason = None
        if done is not None:
            reason = "length" if body.max_tokens == 0 else responses.finish_reason(done)
        choice = {"index": index, "text": text, "logprobs": shaped, "finish_reason": reason}
        yield {**head, "choices": [choice], **_no_usage_yet(body)}
    if _wants_usage(body):
        yield {**head, "choices": [], "usage": generation.usage}


async def _stream_chat(
    head: dict[str, Any], body: ChatRequest, generation: Generation, vocabulary: Vocabulary
) -> AsyncIterator[dict[str, Any]]:
    def event(index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**head, "choices": [choice], **_no_usage_yet(body)}

    for index in range(len(generation.jobs)):
        yield event(index, {"role": "assistant", "content": "", "refusal": None})
    async for index, chunk in generation.events():
        failed = generation.failure(index) if chunk.completion is not None else None
        if failed is not None:
            yield failed.body
            continue
        logprobs = responses.chat_logprobs(vocabulary, chunk.logprobs) if body.logprobs and chunk.logprobs else None
        if chunk.text or logprobs:
            yield event(index, {"content": chunk.text}, logprobs)
        if chunk.completion is not None:
            yield event(index, {}, reason=responses.finish_reason(chunk.completion))
    if _wants_usage(body):
        yield {**head, "choices": [], "usage": generation.usage}


def _wants_usage(body: GenerationRequest) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


def _no_usage_yet(body: GenerationRequest) -> dict[str, None]:
    """With include_usage, every chunk but the last says null."""
    return {"usage": None} if _wants_usage(body) else {}
