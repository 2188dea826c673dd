"""`VllmBackend`: vLLM's asynchronous engine behind the server's seam.

    backend = VllmBackend(AsyncVllmEngine.start("smollm2", max_batch=32, tensor_parallel_size=2))

Everything runs on the server's event loop; the model computes in vLLM's own processes. The server hands over adapters as
values, each under a name that never changes its meaning; vLLM's workers load one when its first request comes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from ... import models
from ...adapter import Adapter
from ...engine.prompts import Prompt
from ...engine.request import Chunk, Request, failed
from ...errors import RoadkitError
from ...expression import Term
from ...kinds import AnyAdapter
from ...vllm_plugin.engine import AsyncVllmEngine, PreparedRequest
from ...vllm_plugin.stream import VllmStream
from .base import GenerationJob, Stats, cancelled, generating_abilities
from .fit import check_base, of_layers
from .queue import FairQueue

log = logging.getLogger("roadkit.server")


class VllmBackend:
    """A `GeneratingBackend` on an `AsyncVllmEngine`, which it owns from `start` to `close`."""

    def __init__(self, engine: AsyncVllmEngine, *, max_queue: int = 256, max_queue_per_tenant: int = 128):
        self.engine = engine
        self.tokenizer: Any = engine.tokenizer
        self.max_context = engine.max_context
        self.abilities = generating_abilities(engine.tokenizer)
        self._fingerprint = models.config_fingerprint(engine.hf_config)
        self._queue: FairQueue[GenerationJob] = FairQueue(
            max_waiting=max_queue, max_waiting_per_tenant=max_queue_per_tenant
        )
        self._adapters: dict[str, Adapter] = {}
        self._tasks: dict[GenerationJob, asyncio.Task[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """On any thread but the event loop's."""
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self.engine.close()

    @property
    def alive(self) -> bool:
        return self.engine.alive

    def encode(self, prompt: Prompt) -> list[int]:
        return self.engine.prompts.encode(prompt)

    def prepare(self, request: Request, *, terms: tuple[Term, ...], tenant: str) -> PreparedRequest:
        """At most one term: `Residents` composes what is no intervention."""
        return self.engine.prepare(request, adapter=self._adapters[terms[0].name] if terms else None)

    def submit(self, job: GenerationJob) -> None:
        self._queue.put(job.tenant, job)
        self._fill()

    def cancel(self, job: GenerationJob) -> None:
        job.cancelled = True
        if self._queue.remove(job.tenant, job):
            job.deliver(cancelled(job.why_cancelled))
        elif job in self._tasks:
            self._tasks[job].cancel()

    def check(self, adapter: AnyAdapter) -> None:
        """On any thread but the event loop's: every worker loads the adapter, since each holds a shard of the model."""
        rotation = of_layers(adapter)
        check_base(self._fingerprint, adapter)
        assert self._loop is not None, "adapters are checked after start()"
        asyncio.run_coroutine_threadsafe(self.engine.check(rotation), self._loop).result()

    def load(self, name: str, adapter: AnyAdapter) -> None:
        self._adapters[name] = of_layers(adapter)

    def unload(self, name: str) -> None:
        del self._adapters[name]

    def stats(self) -> Stats:
        """`cache_used` is NaN: vLLM keeps that to its own metrics."""
        loaded = self.engine.stats()["loaded"]
        return Stats(
            running=len(self._tasks),
            waiting=len(self._queue),
            resident=loaded,
            cache_used=float("nan"),
            max_batch=self.engine.max_batch,
        )

    # ---- on the event loop -------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Start waiting jobs while vLLM has rows for them: who waits is the fair queue's matter, not vLLM's."""
        while not self._closing and len(self._tasks) < self.engine.max_batch:
            job = self._queue.pop()
            if job is None:
                return
            job.started = time.monotonic()
            self._tasks[job] = asyncio.create_task(self._answer(job))
            self._tasks[job].add_done_callback(lambda task, job=job: self._done(job, task))

    async def _answer(self, job: GenerationJob) -> None:
        stream: VllmStream | None = None
        try:
            stream = await self.engine.submit(job.prepared, tenant=job.tenant)
            async for chunk in stream:
                self._emit(job, chunk)
        except asyncio.CancelledError:
            if stream is None:
                self._emit(job, cancelled(job.why_cancelled))
            else:
                await stream.cancel()
                self._emit(job, Chunk("", (), (), await stream.result()))
        except RoadkitError as error:  # the adapter does not fit after all, or its files are damaged
            self._emit(job, Chunk("", (), (), failed(str(error), "request")))

    def _emit(self, job: GenerationJob, chunk: Chunk) -> None:
        if job.finished is not None:
            return
        if job.first is None and chunk.token_ids:
            job.first = time.monotonic()
        if chunk.completion is not None:
            job.finished = time.monotonic()
        if job.streaming or chunk.completion is not None:
            job.deliver(chunk)

    def _done(self, job: GenerationJob, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("a request failed", exc_info=error)
        if error is None:
            last = cancelled(job.why_cancelled)
        else:
            last = Chunk("", (), (), failed(f"{type(error).__name__}: {error}", "engine"))
        self._emit(job, last)
        del self._tasks[job]
        self._queue.done(job.tenant)
        self._fill()

    async def _end(self) -> None:
        self._closing = True
        while (job := self._queue.pop()) is not None:
            job.deliver(cancelled("the server stops"))
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
