"""`Generation`: one HTTP request's prompts × n, on their way through a backend.

generation = await Generation.begin(service, backend, key, body)
completions = await generation.results(request)          # or: async for index, chunk in generation.events()
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest

from ...engine.prompts import Prompt
from ...engine.request import Chunk, Completion, Request
from ...errors import ContextTooLong
from ..access.keys import Key
from ..adapters.residents import Lease
from ..backends.base import GeneratingBackend, GenerationJob
from ..errors import ApiError
from ..metrics import label_of
from ..service import Service
from ..settings import Limits
from .mailbox import Mailbox
from .request_jobs import RequestJobs, watched
from .requests import GenerationRequest

CHARACTERS_PER_TOKEN = 32  # at most, in a prompt that is worth tokenising


class Generation(RequestJobs[GenerationJob]):
    """Built by `begin`. `jobs[i]` answers prompt `i // n`.

    prompt_ids    the prompts' tokens
    echoes        their texts; '' if they were not asked for
    completions   job → how it ended, of those that did
    """

    def __init__(self, service: Service, backend: GeneratingBackend, key: Key, body: GenerationRequest, count: int):
        super().__init__(service, backend, key, body.model, count=count)
        self.prompt_ids: list[list[int]] = []
        self.echoes: list[str] = []
        self.completions: dict[int, Completion] = {}
        self._backend, self._body = backend, body
        self._mailbox = Mailbox(service.settings.stream_buffer)

    @classmethod
    async def begin(cls, service: Service, backend: GeneratingBackend, key: Key, body: GenerationRequest) -> Generation:
        """Check, prepare and queue everything, or raise `ApiError` with nothing left behind."""
        count = _checked_count(body, service.settings.limits)
        generation = cls(service, backend, key, body, count)
        await generation._begin(generation._prepare, generation._job, param=body.PROMPT_FIELD)
        return generation

    async def events(self) -> AsyncIterator[tuple[int, Chunk]]:
        """(job, chunk) as they come; the last chunk of each job holds its completion."""
        async for index, chunk in self._mailbox.read(len(self.jobs)):
            yield index, chunk

    async def results(self, request: HttpRequest) -> list[Completion]:
        """All completions. A client that goes away ends them; a failed one raises `ApiError`."""
        async with watched(request, self):
            async for _ in self.events():
                pass
        for index in range(len(self.jobs)):
            error = self.failure(index)
            if error is not None:
                raise error
        return [self.completions[index] for index in range(len(self.jobs))]

    def failure(self, index: int) -> ApiError | None:
        """What to tell the client about a job that did not end well."""
        completion = self.completions[index]
        if completion.finish_reason == "cancelled":
            return self.cancellation(self.jobs[index])
        if completion.finish_reason == "error":
            if completion.fault == "engine":
                return ApiError(500, "the engine failed on this request")
            return ApiError(400, completion.error or "the request failed", param="model")
        return None

    @property
    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object."""
        read = sum(map(len, self.prompt_ids))
        written = sum(len(completion.token_ids) for completion in self.completions.values())
        cached = sum(completion.cached_tokens for completion in self.completions.values())
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": min(cached, read)},
        }

    @property
    def tokens(self) -> int:
        """Those that the engine read (a prompt once, whatever n) and wrote; none of a request that it never began."""
        read: dict[int, int] = {}
        for index, completion in self.completions.items():
            prompt = index * len(self.prompt_ids) // self.count
            read[prompt] = max(read.get(prompt, 0), completion.prompt_tokens)
        return sum(read.values()) + sum(len(completion.token_ids) for completion in self.completions.values())

    # ---- inside ----------------------------------------------------------------------------------------------

    def _prepare(self, lease: Lease | None) -> list[Any]:
        """On a worker thread: tokenise, and let the backend check each request."""
        backend, body, prepared = self._backend, self._body, []
        terms = lease.terms if lease else ()
        for prompt in body.prompts:
            token_ids = self._encode(prompt)
            self.prompt_ids.append(token_ids)
            self.echoes.append(self._text(prompt, token_ids) if body.wants_echo else "")
            for index in range(body.n or 1):
                request = _engine_request(body, token_ids, self._max_tokens(token_ids), index)
                prepared.append(backend.prepare(request, terms=terms, tenant=self.key.tenant))
        return prepared

    def _encode(self, prompt: Prompt) -> list[int]:
        longest = self._backend.max_context
        if isinstance(prompt, str) and len(prompt) > CHARACTERS_PER_TOKEN * longest:
            raise ContextTooLong(
                f"the prompt has {len(prompt)} characters, more than fit a context of {longest} tokens"
            )
        return self._backend.encode(prompt)

    def _text(self, prompt: Prompt, token_ids: list[int]) -> str:
        return prompt if isinstance(prompt, str) else self._backend.tokenizer.decode(token_ids)

    def _max_tokens(self, token_ids: list[int]) -> int:
        """The number that a client named, which is kept to; without one, as many as fit."""
        if self._body.answer_tokens is not None:
            return max(1, self._body.answer_tokens)
        room = max(1, self._backend.max_context - len(token_ids))
        return min(room, self.service.settings.limits.max_tokens)

    def _job(self, index: int, prepared: Any) -> GenerationJob:
        return GenerationJob(
            tenant=self.key.tenant,
            prepared=prepared,
            deliver=partial(self._deliver, index),
            streaming=bool(self._body.stream),
            arrived=self.arrived,
        )

    def _deliver(self, index: int, chunk: Chunk) -> None:
        if chunk.completion is not None:
            self._finished(index, chunk.completion)
        if not self._mailbox.put(index, chunk):
            self.cancel("the client reads too slowly")

    def _finished(self, index: int, completion: Completion) -> None:
        self.completions[index] = completion
        self.service.metrics.finished(
            tenant=self.key.tenant, adapter=label_of(self.model), job=self.jobs[index], completion=completion
        )
        self._ended(index)


def _checked_count(body: GenerationRequest, limits: Limits) -> int:
    """How many answers are wanted. Raises `ApiError` for what is beyond the limits."""
    num_prompts = len(body.prompts)
    total = num_prompts * (body.n or 1)
    schema = body.response_format.wanted if body.response_format else None
    try:
        schema_size = len(json.dumps(schema)) if schema else 0
    except RecursionError:
        raise ApiError(400, "response_format: the schema is nested too deeply", param="response_format") from None
    for param, value, most in (
        ("n", body.n or 1, limits.max_n),
        ("prompt", total, limits.max_prompts),
        ("logprobs", body.wanted_logprobs or 0, limits.max_logprobs),
        ("stop", len(body.stops), limits.max_stop),
        ("stop", max(map(len, body.stops), default=0), limits.max_stop_length),
        ("max_tokens", body.most_tokens, limits.max_tokens),
        ("response_format", schema_size, limits.max_schema),
    ):
        if value > most:
            raise ApiError(400, f"{param} is too large: {value}, at most {most} is allowed", param=param)
    if not num_prompts:
        raise ApiError(400, "prompt is an empty list", param="prompt")
    return total


def _engine_request(body: GenerationRequest, token_ids: list[int], max_tokens: int, index: int) -> Request:
    """What the engine is asked for answer `index` of a prompt. OpenAI's defaults: temperature 1, top_p 1."""
    return Request(
        prompt=token_ids,
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=max(1.0 if body.top_p is None else body.top_p, 1e-6),
        top_k=body.top_k if body.top_k and body.top_k > 0 else None,
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        no_repeat_ngram_size=body.no_repeat_ngram_size or 0,
        seed=None if body.seed is None else body.seed + index,
        stop=body.stops,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        logprobs=body.wanted_logprobs,
        prompt_logprobs=body.wanted_logprobs if body.wants_echo else None,
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        json_schema=body.response_format.wanted if body.response_format else None,
    )
