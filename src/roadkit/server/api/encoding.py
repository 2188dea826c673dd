"""`Encoding`: one HTTP request's texts, on their way through a backend.

encoding = await Encoding.begin(service, backend, key, body, task="embed")
vectors = await encoding.results(request)
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

from starlette.requests import Request as HttpRequest

from ...errors import RoadkitError
from ..access.keys import Key
from ..adapters.residents import Lease
from ..backends.base import EncodingBackend, EncodingJob, EncodingTask, Vector
from ..errors import ApiError, from_roadkit
from ..metrics import label_of
from ..service import Service
from .request_jobs import RequestJobs, watched
from .requests import EncodingRequest


class Encoding(RequestJobs[EncodingJob]):
    """Built by `begin`. `jobs[i]` encodes text i."""

    def __init__(self, service: Service, backend: EncodingBackend, key: Key, body: EncodingRequest, task: EncodingTask):
        super().__init__(service, backend, key, body.model, count=len(body.inputs))
        self._backend, self._body = backend, body
        self._task: EncodingTask = task
        self._results: dict[int, Vector | Exception] = {}
        self._complete = asyncio.Event()

    @classmethod
    async def begin(
        cls, service: Service, backend: EncodingBackend, key: Key, body: EncodingRequest, *, task: EncodingTask
    ) -> Encoding:
        """Check, prepare and queue everything, or raise `ApiError` with nothing left behind."""
        count, most = len(body.inputs), service.settings.limits.max_inputs
        if not 1 <= count <= most:
            raise ApiError(400, f"input has {count} texts, 1 to {most} are allowed", param="input")
        encoding = cls(service, backend, key, body, task)
        await encoding._begin(encoding._prepare, encoding._job, param="input")
        return encoding

    async def results(self, request: HttpRequest) -> list[Vector]:
        """A vector, or logits, of each text. A client that goes away ends them; a failed one raises `ApiError`."""
        seconds = self.arrived + self.service.settings.request_seconds - time.monotonic()
        async with watched(request, self):
            try:
                await asyncio.wait_for(self._complete.wait(), seconds)
            except TimeoutError:  # a batch that runs cannot be cut short, its client needs not wait for it
                raise ApiError(504, "the request's time is over", code="cancelled") from None
        vectors = []
        for index, job in enumerate(self.jobs):
            result = self._results[index]
            if isinstance(result, Exception):
                raise self._failure(job, result)
            vectors.append(result)
        self.service.metrics.encoded(
            tenant=self.key.tenant, adapter=label_of(self.model), texts=self.count, tokens=self.tokens
        )
        return vectors

    @property
    def tokens(self) -> int:
        """Those of the texts that the model read."""
        read = (job for index, job in enumerate(self.jobs) if isinstance(self._results.get(index), list))
        return sum(len(job.token_ids) for job in read)

    # ---- inside ----------------------------------------------------------------------------------------------

    def _prepare(self, lease: Lease | None) -> list[tuple[list[int], str | None]]:
        """On a worker thread: tokens of each text, and the adapter."""
        token_ids = [self._backend.encode(text) for text in self._body.inputs]
        if self._task == "classify" and not self._backend.own_head:
            if lease is None or not lease.adapter.rotation.heads:
                raise ApiError(400, "the base has no head; name an adapter that brings one", param="model")
        return [(ids, lease.name if lease else None) for ids in token_ids]

    def _job(self, index: int, prepared: tuple[list[int], str | None]) -> EncodingJob:
        token_ids, adapter = prepared
        return EncodingJob(
            tenant=self.key.tenant,
            token_ids=token_ids,
            adapter=adapter,
            task=self._task,
            deliver=partial(self._deliver, index),
        )

    def _deliver(self, index: int, result: Vector | Exception) -> None:
        self._results[index] = result
        if len(self._results) == self.count:
            self._complete.set()
        self._ended(index)

    def _failure(self, job: EncodingJob, error: Exception) -> Exception:
        if job.cancelled:
            return self.cancellation(job)
        return from_roadkit(error, param="input") if isinstance(error, RoadkitError) else error
