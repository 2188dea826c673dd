"""`RequestJobs`: the jobs of one HTTP request in a backend, and what they hold until the last of them has ended.

    generation = await Generation.begin(service, backend, key, body)      # its two kinds: `Generation` and `Encoding`
    async with watched(request, generation): ...                          # a client that goes away ends them

A request takes from its key's quota, leases its adapters and has a deadline. Whatever happens to the client, the quota
and the lease are given back exactly once: as soon as nobody can ask for more and every job has ended.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

from starlette.requests import Request as HttpRequest

from ...errors import RoadkitError
from ..access.keys import Key
from ..adapters.residents import Lease
from ..backends.base import Job, TakesJobs
from ..errors import ApiError, from_roadkit
from ..service import Service
from ..traffic import Cancellable

JobT = TypeVar("JobT", bound=Job)
Prepared = TypeVar("Prepared")


class RequestJobs(ABC, Generic[JobT]):
    """`count` jobs, `jobs[i]` once they are queued. Used on the event loop.

    Raises `ApiError` if the key may not have so many.
    """

    def __init__(self, service: Service, queue: TakesJobs[JobT], key: Key, model: str, *, count: int):
        self.service, self.key, self.model, self.count = service, key, model, count
        self.arrived = time.monotonic()
        self.jobs: list[JobT] = []
        self._queue = queue
        self._running: set[JobT] = set()
        self._lease: Lease | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = self._given_back = False
        service.meters.of(key).enter(model, count=count)
        service.traffic.running.add(self)

    @property
    @abstractmethod
    def tokens(self) -> int:
        """What the request is charged for."""

    def cancel(self, why: str) -> None:
        """End what still runs."""
        for job in [job for job in self.jobs if job in self._running]:
            job.why_cancelled = job.why_cancelled or why
            self._queue.cancel(job)

    def close(self) -> None:
        """Nobody reads any more: jobs that still run are cancelled."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self.cancel("the client has gone")
        self._give_back()

    def cancellation(self, job: JobT) -> ApiError:
        """What to tell the client about a job that was cancelled."""
        if self.service.traffic.draining:
            return ApiError(503, "the server is shutting down", code="shutting_down", retry_after=5)
        return ApiError(504, job.why_cancelled or "the request was cancelled", code="cancelled")

    # ---- for the two kinds -----------------------------------------------------------------------------------

    async def _begin(
        self, prepare: Callable[[Lease | None], Sequence[Prepared]], job: Callable[[int, Prepared], JobT], *, param: str
    ) -> None:
        """Lease, prepare and queue everything, or raise `ApiError` with nothing left behind.

        prepare    what each job is made of, computed on a thread beside the lease; None is the base
        param      the field that a mistake is told of, if its error names none
        """

        def leased() -> Sequence[Prepared]:
            factors = self.service.catalog.parse(self.key.tenant, self.model)
            self._lease = self.service.residents.acquire(factors) if factors else None
            return prepare(self._lease)

        try:
            for index, prepared in enumerate(await self.service.threads.work(leased)):
                one = job(index, prepared)
                self._queue.submit(one)
                self.jobs.append(one)
                self._running.add(one)
        except RoadkitError as error:
            self.close()
            raise from_roadkit(error, param=param) from None
        except BaseException:
            self.close()
            raise
        seconds = self.service.settings.request_seconds
        self._timer = asyncio.get_running_loop().call_later(seconds, self.cancel, "the request's time is over")

    def _ended(self, index: int) -> None:
        """The job of this number has delivered its last."""
        self._running.discard(self.jobs[index])
        self._give_back()

    def _give_back(self) -> None:
        """The adapters and the quota, once every job has ended: tokens that nobody waited for count too."""
        complete = self._closed or len(self.jobs) == self.count
        if self._running or not complete or self._given_back:
            return
        self._given_back = True
        self.service.traffic.running.discard(self)
        self.service.meters.of(self.key).leave(self.model, count=self.count, tokens=self.tokens)
        if self._lease is not None:
            self.service.residents.release(self._lease)


class Answering(Cancellable, Protocol):
    """What a response is made of: the jobs of one request, or of several."""

    def close(self) -> None:
        """Nobody reads any more."""
        ...


@asynccontextmanager
async def watched(request: HttpRequest, answering: Answering) -> AsyncIterator[None]:
    """Cancel if the client goes away meanwhile; close at the end."""
    watcher = asyncio.ensure_future(_cancel_when_gone(request, answering))
    try:
        yield
    finally:
        watcher.cancel()
        answering.close()


async def _cancel_when_gone(request: HttpRequest, answering: Answering) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    answering.cancel("the client has gone")
