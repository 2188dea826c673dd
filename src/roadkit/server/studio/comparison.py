"""`Comparison`: several requests, each with its own expression, answered in one batch and streamed over one connection.

    comparison = await Comparison.begin(service, backend, key, bodies)
    return EventStream(comparison, comparison.events(), request)

Browsers keep six connections to a server, too few for eight answers. Each request counts, waits and fails as if it had
been sent alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from ..access.keys import Key
from ..api import responses
from ..api.generation import Generation
from ..api.requests import GenerationRequest
from ..backends.base import Backend, GeneratingBackend
from ..errors import ApiError
from ..service import Service


class Comparison:
    """Built by `begin`. `columns[i]` answers request i, or is the error that it met before it started."""

    def __init__(self, backend: Backend, columns: Sequence[Generation | ApiError]):
        self.columns = columns
        self._backend, self._steps = backend, backend.stats().steps
        self._tokens = self._peak = 0

    @classmethod
    async def begin(
        cls, service: Service, backend: GeneratingBackend, key: Key, bodies: Sequence[GenerationRequest]
    ) -> Comparison:
        """Queue all requests before the first is answered."""
        beginning = (_begin(service, backend, key, body) for body in bodies)
        begun = await asyncio.gather(*beginning, return_exceptions=True)
        columns = [one for one in begun if isinstance(one, Generation | ApiError)]
        fault = next((one for one in begun if not isinstance(one, Generation | ApiError)), None)
        comparison = cls(backend, columns)
        if fault is not None:
            comparison.close()
            raise fault
        return comparison

    def cancel(self, why: str) -> None:
        """End what still runs."""
        for generation in self._generations:
            generation.cancel(why)

    def close(self) -> None:
        """Nobody reads any more."""
        for generation in self._generations:
            generation.close()

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """`{"column", "text", "tokens"}` as they come, `{"column", "finish_reason" | "error", …}` once a request,
        `{"batch"}` whenever more of them run at once than before, and at last.
        """
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(maxsize=64)
        tasks = [asyncio.create_task(self._column(i, one, queue)) for i, one in enumerate(self.columns)]
        try:
            left = len(tasks)
            while left:
                event = await queue.get()
                if event is None:
                    left -= 1
                    continue
                self._tokens += event.get("tokens", 0)
                yield event
                if (running := sum(map(_runs, self._generations))) > self._peak:
                    self._peak = running
                    yield self._batch()
            yield self._batch()
        finally:
            for task in tasks:
                task.cancel()

    # ---- inside ----------------------------------------------------------------------------------------------

    @property
    def _generations(self) -> list[Generation]:
        return [one for one in self.columns if isinstance(one, Generation)]

    def _batch(self) -> dict[str, Any]:
        """How much of this was computed together: tokens a step of the engine is the proof."""
        steps = self._backend.stats().steps - self._steps
        return {"batch": {"peak": self._peak, "tokens": self._tokens, "steps": steps}}

    async def _column(self, index: int, one: Generation | ApiError, queue: asyncio.Queue) -> None:
        if isinstance(one, ApiError):
            await queue.put({"column": index, "error": one.body["error"]["message"]})
            await queue.put(None)
            return
        async for _, chunk in one.events():
            event: dict[str, Any] = {"column": index, "text": chunk.text, "tokens": len(chunk.token_ids)}
            if chunk.completion is not None:
                failure, job = one.failure(0), one.jobs[0]
                if failure is not None:
                    event["error"] = failure.body["error"]["message"]
                else:
                    event["finish_reason"] = responses.finish_reason(chunk.completion)
                if job.first is not None and job.finished is not None:
                    event["first_token_seconds"] = round(job.first - job.arrived, 4)
                    event["decode_seconds"] = round(job.finished - job.first, 4)
            await queue.put(event)
        await queue.put(None)


def _runs(generation: Generation) -> bool:
    return any(job.started is not None and job.finished is None for job in generation.jobs)


async def _begin(service: Service, backend: GeneratingBackend, key: Key, body: GenerationRequest) -> Generation:
    if (body.n or 1) != 1:
        raise ApiError(400, f"n is {body.n}; each request here has one answer, send it several times", param="n")
    if len(body.prompts) != 1:
        raise ApiError(400, f"prompt holds {len(body.prompts)} prompts; each request here has one", param="prompt")
    shown: dict[str, Any] = {"stream": True, "logprobs": None, "max_tokens": body.max_tokens or None}
    return await Generation.begin(service, backend, key, body.model_copy(update=shown))
