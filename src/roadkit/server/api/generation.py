"""`Generation`: one HTTP request's prompts × n, on their way through the backend.

    generation = await Generation.begin(service, key, body, prompts, logprobs=None)
    completions = await generation.results(request)          # or: async for index, chunk in generation.events()

Whatever happens to the client, `close` frees every row, lease and quota exactly once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest

from ...engine.request import Chunk, Completion, Message, Request
from ...errors import RoadkitError
from ..access.keys import Key
from ..adapters.residents import Lease
from ..backends.base import Job, Mailbox
from ..errors import ApiError, from_roadkit
from ..metrics import label_of
from ..service import Service
from .requests import Sampling

log = logging.getLogger("roadkit.server")


class Generation:
    """Built by `begin`. `jobs[i]` answers prompt `i // n`; `prompt_ids` are the prompts' tokens, `echoes` their texts."""

    def __init__(self, service: Service, key: Key, model: str, count: int):
        self.service, self.key, self.model, self.count = service, key, model, count
        self.jobs: list[Job] = []
        self.prompt_ids: list[list[int]] = []
        self.echoes: list[str] = []  # '' where they were not asked for
        self.completions: dict[int, Completion] = {}
        self._lease: Lease | None = None
        self._mailbox = Mailbox(service.settings.stream_buffer)
        self._timer: asyncio.TimerHandle | None = None
        self._closed, self._let_go = False, False

    @classmethod
    async def begin(
        cls,
        service: Service,
        key: Key,
        body: Sampling,
        prompts: list[str | list[int] | list[Message]],
        *,
        max_tokens: int | None,
        logprobs: int | None,
        echo: bool = False,
        field: str = "prompt",
    ) -> Generation:
        """Check, prepare and queue everything, or raise `ApiError` with nothing left behind."""
        arrived = time.monotonic()
        count = _check(service, body, len(prompts), logprobs)
        service.meter(key).enter(body.model, count=count)
        self = cls(service, key, body.model, count)
        try:
            prepared = await service.work(partial(self._prepare, body, prompts, max_tokens, logprobs, echo))
            for index, one in enumerate(prepared):
                deliver = partial(self._deliver, index)
                job = Job(one, key.tenant, deliver, streaming=bool(body.stream), arrived=arrived)
                service.backend.submit(job)
                self.jobs.append(job)
                service.jobs.add(job)
        except BaseException as error:
            self.close()
            raise from_roadkit(error, param=field) if isinstance(error, RoadkitError) else error from None
        self._timer = asyncio.get_running_loop().call_later(
            service.settings.request_seconds, self.cancel, "the request's time is over"
        )
        return self

    def _prepare(
        self, body: Sampling, prompts: list, max_tokens: int | None, logprobs: int | None, echo: bool
    ) -> list[Any]:
        """On a worker thread: read the adapters, compose, tokenise."""
        service, prepared = self.service, []
        factors = service.parse(self.key, body.model)
        if factors:
            self._lease = service.residents.acquire(factors)
        for prompt in prompts:
            if isinstance(prompt, str) and len(prompt) > 32 * service.backend.max_context:
                raise ApiError(
                    400,
                    f"the prompt has {len(prompt)} characters, more than fit a context of "
                    f"{service.backend.max_context} tokens",
                    code="context_length_exceeded",
                )
            token_ids = service.backend.encode(prompt)
            self.prompt_ids.append(token_ids)
            room = max(1, service.backend.max_context - len(token_ids))
            # a number that a client named is kept to; without one, what fits
            count = min(room, service.settings.limits.max_tokens) if max_tokens is None else max_tokens
            for index in range(body.n or 1):
                request = _request(body, token_ids, count, logprobs, echo and logprobs is not None, index)
                prepared.append(
                    service.backend.prepare(
                        request, terms=self._lease.terms if self._lease else (), tenant=self.key.tenant
                    )
                )
            text = prompt if isinstance(prompt, str) else service.backend.tokenizer.decode(token_ids) if echo else ""
            self.echoes.append(text if echo else "")
        return prepared

    # ---- reading ---------------------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[tuple[int, Chunk]]:
        """(choice, chunk) as they come; the last chunk of each choice holds its completion."""
        async for index, chunk in self._mailbox.read(len(self.jobs)):
            yield index, chunk

    async def results(self, request: HttpRequest) -> list[Completion]:
        """All completions. A client that goes away ends them; a failed one raises `ApiError`."""
        watcher = asyncio.ensure_future(self.watch(request))
        try:
            async for _ in self.events():
                pass
        finally:
            watcher.cancel()
            self.close()
        for index in range(len(self.jobs)):
            error = self.failure(index)
            if error is not None:
                raise error
        return [self.completions[index] for index in range(len(self.jobs))]

    def failure(self, index: int) -> ApiError | None:
        """What to tell the client about a choice that did not end well."""
        completion, job = self.completions[index], self.jobs[index]
        if completion.finish_reason == "cancelled":
            if self.service.draining:
                return ApiError(503, "the server is shutting down", code="shutting_down", retry_after=5)
            return ApiError(504, job.why_cancelled or "the request was cancelled", code="cancelled")
        if completion.finish_reason == "error":
            if completion.fault == "engine":
                return ApiError(500, "the engine failed on this request")
            return ApiError(400, completion.error or "the request failed", param="model")
        return None

    async def watch(self, request: HttpRequest) -> None:
        """Cancel everything when the client has gone."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.cancel("the client has gone")

    def cancel(self, why: str) -> None:
        """End what still runs; each job gets its last chunk."""
        for index, job in enumerate(self.jobs):
            if index not in self.completions:
                job.why_cancelled = job.why_cancelled or why
                self.service.backend.cancel(job)

    def close(self) -> None:
        """Nobody reads any more. Jobs that still run are cancelled; adapter and quota are held until they have ended."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self.cancel("the client has gone")
        self._give_back()

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
    def _charged(self) -> int:
        """Tokens that the engine read (a prompt once, whatever n) and wrote; none of a request that it never began."""
        read: dict[int, int] = {}
        for index, completion in self.completions.items():
            prompt = index * len(self.prompt_ids) // self.count
            read[prompt] = max(read.get(prompt, 0), completion.prompt_tokens)
        return sum(read.values()) + sum(len(completion.token_ids) for completion in self.completions.values())

    # ---- inside ----------------------------------------------------------------------------------------------

    def _deliver(self, index: int, chunk: Chunk) -> None:
        if chunk.completion is not None:
            self._finished(index, chunk.completion)
        if not self._mailbox.put(index, chunk):
            self.cancel("the client reads too slowly")

    def _finished(self, index: int, completion: Completion) -> None:
        job = self.jobs[index]
        self.service.jobs.discard(job)
        self.completions[index] = completion
        adapter = label_of(self.model)
        self.service.metrics.finished(tenant=self.key.tenant, adapter=adapter, job=job, completion=completion)
        self._give_back()

    def _give_back(self) -> None:
        """The adapter and the quota, once every job has ended: tokens that nobody waited for count too."""
        ended = len(self.completions) == len(self.jobs) and (self._closed or len(self.jobs) == self.count)
        if not ended or self._let_go:
            return
        self._let_go = True
        self.service.meter(self.key).leave(self.model, count=self.count, tokens=self._charged)
        if self._lease is not None:
            self.service.residents.release(self._lease)


def _check(service: Service, body: Sampling, num_prompts: int, logprobs: int | None) -> int:
    """Refuse what is beyond the limits; returns how many answers are wanted."""
    limits, total = service.settings.limits, num_prompts * (body.n or 1)
    schema = body.response_format.wanted if body.response_format else None
    try:
        schema_size = len(json.dumps(schema)) if schema else 0
    except RecursionError:
        raise ApiError(400, "response_format: the schema is nested too deeply", param="response_format") from None
    for param, value, most in (
        ("n", body.n or 1, limits.max_n),
        ("prompt", total, limits.max_prompts),
        ("logprobs", logprobs or 0, limits.max_logprobs),
        ("stop", len(body.stops), limits.max_stop),
        ("stop", max(map(len, body.stops), default=0), limits.max_stop_length),
        ("max_tokens", body.max_tokens or 0, limits.max_tokens),
        ("max_tokens", getattr(body, "max_completion_tokens", None) or 0, limits.max_tokens),
        ("response_format", schema_size, limits.max_schema),
    ):
        if value > most:
            raise ApiError(400, f"{param} is too large: {value}, at most {most} is allowed", param=param)
    if not num_prompts:
        raise ApiError(400, "prompt is an empty list", param="prompt")
    return total


def _request(
    body: Sampling, token_ids: list[int], max_tokens: int, logprobs: int | None, echo_logprobs: bool, index: int
) -> Request:
    """One engine request. OpenAI's defaults: temperature 1, top_p 1."""
    return Request(
        prompt=token_ids,
        max_tokens=max(1, max_tokens),
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=max(1.0 if body.top_p is None else body.top_p, 1e-6),
        top_k=body.top_k if body.top_k and body.top_k > 0 else None,
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        no_repeat_ngram_size=body.no_repeat_ngram_size or 0,
        seed=None if body.seed is None else body.seed + index,
        stop=body.stops,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        logprobs=logprobs,
        prompt_logprobs=logprobs if echo_logprobs else None,
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        json_schema=body.response_format.wanted if body.response_format else None,
    )
