"""`EmbeddedBackend`: roadkit's own engine behind the server's seam. It steps in a thread of its own.

    backend = EmbeddedBackend(Engine.from_pretrained("smollm2"))
    backend.start()        # inside the event loop that will get the chunks

The event loop hands over closures and never takes the engine's lock; the thread hands back one call for all chunks of
a step. Jobs wait in a `FairQueue` and enter the engine only when it has a free row.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import nullcontext
from functools import partial
from typing import Any

from ... import models
from ...engine.engine import Engine
from ...engine.prompts import Prompt
from ...engine.request import Chunk, Request
from ...engine.stream import Stream
from ...errors import AdapterError
from ...expression import Term
from ...kinds import AnyAdapter
from .base import GenerationJob, Stats, cancelled, generating_abilities
from .fit import check_fit
from .queue import FairQueue
from .worker import Worker

log = logging.getLogger("roadkit.server")

# Seconds. On a CPU the model's threads take all cores: a step that begins while the event loop still sends the last
# one's tokens has its threads wait for each other at every barrier, which costs more than waiting once before it.
HANDOVER = 0.02


class EmbeddedBackend:
    """A `GeneratingBackend` on an `Engine`, which it owns from `start` to `close`."""

    def __init__(self, engine: Engine, *, max_queue: int = 256, max_queue_per_tenant: int = 128):
        self.engine = engine
        self.tokenizer: Any = engine.tokenizer
        self.max_context = engine.max_context
        self.abilities = generating_abilities(engine.tokenizer)
        self._queue: FairQueue[GenerationJob] = FairQueue(
            max_waiting=max_queue, max_waiting_per_tenant=max_queue_per_tenant
        )
        self._outbox: list[tuple[GenerationJob, Chunk]] = []
        self._streams: dict[GenerationJob, Stream] = {}
        self._compiling = threading.Lock()  # one schema at a time; requests without one do not wait for it
        self._worker = Worker("roadkit-engine", self._run)
        self._steps, self._busy, self._tokens = 0, 0.0, 0
        on_cpu = engine.runner.model.device.type == "cpu"
        self._handover = HANDOVER if on_cpu else 0.0

    # ---- called on the event loop, or (encode, prepare, check) on any thread --------------------------------------

    def start(self) -> None:
        self._worker.start()

    def close(self) -> None:
        self._worker.close()

    @property
    def alive(self) -> bool:
        return self._worker.alive

    def encode(self, prompt: Prompt) -> list[int]:
        return self.engine.prompts.encode(prompt)

    def prepare(self, request: Request, *, terms: tuple[Term, ...], tenant: str) -> Any:
        with self._compiling if request.json_schema is not None else nullcontext():
            return self.engine.prepare(request, terms=terms, tenant=f"{tenant}\0")

    def submit(self, job: GenerationJob) -> None:
        self._queue.put(job.tenant, job)
        self._worker.tell(None)

    def cancel(self, job: GenerationJob) -> None:
        job.cancelled = True
        if self._queue.remove(job.tenant, job):
            job.deliver(cancelled(job.why_cancelled))
        else:
            self._worker.tell(partial(self._cancel, job))

    def check(self, adapter: AnyAdapter) -> None:
        if heads := adapter.rotation.heads:
            names = ", ".join(sorted(heads)[:5])
            raise AdapterError(f"the adapter brings whole modules ({names}); this server generates with rotations only")
        check_fit(self.engine.runner.model, adapter)

    def load(self, name: str, adapter: AnyAdapter) -> None:
        self._worker.tell(partial(self.engine.add_adapter, name, adapter))

    def unload(self, name: str) -> None:
        self._worker.tell(partial(self.engine.remove_adapter, name))

    def stats(self) -> Stats:
        cache = self.engine.scheduler.cache
        return Stats(
            running=len(self._streams),
            waiting=len(self._queue),
            resident=len(self.engine.bank.resident()),
            steps=self._steps,
            seconds_busy=self._busy,
            cache_used=1 - cache.num_free / cache.num_pages,
            distinct=len({sequence.row for sequence in list(self.engine.scheduler.running)}),
            max_batch=self.engine.scheduler.max_batch,
            tokens=self._tokens,
        )

    # ---- the engine's thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        busy = False
        while not self._worker.closing:
            self._worker.listen(wait=not busy)
            start = time.monotonic()
            try:
                self._fill()
                busy = self.engine.step()
            except Exception:  # a fault of ours: these requests end, the next ones start afresh
                log.exception("the engine failed outside a step; its requests are ended")
                busy = False
                for job in list(self._streams):
                    self._cancel(job, "the engine failed")
                if models.device_lost(self.engine.runner.model.device):
                    log.critical("the GPU takes no more work from this process: it must be started again")
                    break  # and /health says so
            self._steps += busy
            self._busy += (time.monotonic() - start) if busy else 0.0
            self._flush()
        for job in list(self._streams):
            self._cancel(job)
        while (job := self._queue.pop()) is not None:
            self._outbox.append((job, cancelled("the server stops")))
        self._flush()

    def _fill(self) -> None:
        """Move waiting jobs into the engine while it has rows for them."""
        scheduler = self.engine.scheduler
        while len(scheduler.running) + len(scheduler.waiting) < scheduler.max_batch:
            job = self._queue.pop()
            if job is None:
                return
            self._worker.listen()  # its adapter was told before it was queued, but maybe after the last look
            if job.cancelled:
                self._emit(job, cancelled(job.why_cancelled))
                continue
            job.started = time.monotonic()
            self._streams[job] = self.engine.enqueue(job.prepared)
            job.prepared.emit = partial(self._emit, job)

    def _emit(self, job: GenerationJob, chunk: Chunk) -> None:
        self._tokens += len(chunk.token_ids)
        if job.first is None and chunk.token_ids:
            job.first = time.monotonic()
        if chunk.completion is not None:
            job.finished = time.monotonic()
            self._streams.pop(job, None)
            self._queue.done(job.tenant)
        if job.streaming or chunk.completion is not None:
            self._outbox.append((job, chunk))

    def _cancel(self, job: GenerationJob, why: str | None = None) -> None:
        job.why_cancelled = job.why_cancelled or why
        if job in self._streams:
            self._streams[job].cancel()

    def _flush(self) -> None:
        if self._outbox:
            outbox, self._outbox = self._outbox, []
            self._worker.answer(partial(_deliver, outbox), wait=self._handover)


def _deliver(outbox: list[tuple[GenerationJob, Chunk]]) -> None:
    for job, chunk in outbox:
        try:
            job.deliver(chunk)
        except Exception:  # one request's trouble is not the others'
            log.exception("a chunk could not be delivered")
