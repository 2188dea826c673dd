"""Several requests, each with its own expression, answered in one batch and streamed over one connection.

    together = await Together.begin(service, key, bodies)
    return EventStream(together, together.events(), request)

Browsers keep six connections to a server, which eight answers would not fit. Each request counts, waits and fails as
if it had been sent alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest

from ...errors import RoadkitError
from ..access.keys import Key
from ..api import responses as answers
from ..api.generation import Generation
from ..api.requests import ChatRequest, CompletionRequest
from ..errors import ApiError, from_roadkit
from ..service import Service


class Together:
    """Built by `begin`. `generations[i]` answers request i, or is the error that it met before it started."""

    def __init__(self, service: Service, generations: Sequence[Generation | ApiError]):
        self.service, self.generations = service, generations
        self._steps = service.backend.stats().steps
        self._tokens = self._peak = 0

    @classmethod
    async def begin(cls, service: Service, key: Key, bodies: Sequence[ChatRequest | CompletionRequest]) -> Together:
        """Queue all requests before the first is answered."""
        begun = await asyncio.gather(*(_begin(service, key, body) for body in bodies), return_exceptions=True)
        fault = next((one for one in begun if isinstance(one, BaseException) and not isinstance(one, ApiError)), None)
        if fault is not None:
            for one in begun:
                if isinstance(one, Generation):
                    one.close()
            raise fault
        return cls(service, begun)  # type: ignore[arg-type]

    async def watch(self, request: HttpRequest) -> None:
        """Cancel everything when the client has gone."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        for generation in self._running:
            generation.cancel("the client has gone")

    def close(self) -> None:
        """Give back what the requests held."""
        for generation in self._running:
            generation.close()

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """`{"column", "text", "tokens"}` as they come, `{"column", "finish_reason" | "error", …}` once a request,
        `{"batch"}` whenever more of them run at once than before, and at last.
        """
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(maxsize=64)
        tasks = [asyncio.create_task(self._column(i, one, queue)) for i, one in enumerate(self.generations)]
        try:
            left = len(tasks)
            while left:
                event = await queue.get()
                if event is None:
                    left -= 1
                    continue
                self._tokens += event.get("tokens", 0)
                yield event
                if (running := sum(map(_runs, self._running))) > self._peak:
                    self._peak = running
                    yield self._batch()
            yield self._batch()
        finally:
            for task in tasks:
                task.cancel()

    # ---- inside ----------------------------------------------------------------------------------------------

    @property
    def _running(self) -> list[Generation]:
        return [one for one in self.generations if isinstance(one, Generation)]

    def _batch(self) -> dict[str, Any]:
        """How much of this was computed together: tokens a step of the engine is the proof."""
        steps = self.service.backend.stats().steps - self._steps
        return {"batch": {"peak": self._peak, "tokens": self._tokens, "steps": steps}}

    async def _column(self, index: int, one: Generation | ApiError, queue: asyncio.Queue) -> None:
        if isinstance(one, ApiError):
            await queue.put({"column": index, "error": one.body["error"]["message"]})
            await queue.put(None)
            return
        async for _, chunk in one.events():
            event: dict[str, Any] = {"column": index, "text": chunk.text, "tokens": len(chunk.token_ids)}
            if chunk.completion is not None:
                failed, job = one.failure(0), one.jobs[0]
                if failed is not None:
                    event["error"] = failed.body["error"]["message"]
                else:
                    event["finish_reason"] = answers.finish_reason(chunk.completion)
                if job.first is not None and job.finished is not None:
                    event["first_token_seconds"] = round(job.first - job.arrived, 4)
                    event["decode_seconds"] = round(job.finished - job.first, 4)
            await queue.put(event)
        await queue.put(None)


def _runs(generation: Generation) -> bool:
    return any(job.started is not None and job.finished is None for job in generation.jobs)


async def _begin(service: Service, key: Key, body: ChatRequest | CompletionRequest) -> Generation:
    body = body.model_copy(update={"stream": True})
    if (body.n or 1) != 1:
        raise ApiError(400, f"n is {body.n}; each request here has one answer, send it several times", param="n")
    if isinstance(body, ChatRequest):
        prompts: list[Any] = [[message.plain for message in body.messages]]
        max_tokens, field = body.max_completion_tokens or body.max_tokens or None, "messages"
    else:
        prompts, field = body.prompts, "prompt"
        max_tokens = body.max_tokens or 16
        if len(prompts) != 1:
            raise ApiError(400, f"prompt holds {len(prompts)} prompts; each request here has one", param="prompt")
    try:
        return await Generation.begin(service, key, body, prompts, max_tokens=max_tokens, logprobs=None, field=field)
    except RoadkitError as error:  # of the expression
        raise from_roadkit(error, param=field) from None
