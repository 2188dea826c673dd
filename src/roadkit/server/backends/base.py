"""The seam between the routes and what generates: `Backend`. The embedded engine is one, vLLM can be another.

    job = Job(prepared=await run(backend.prepare, request, terms=lease.terms, tenant="acme"), tenant="acme", ...)
    backend.submit(job)                       # at once; `job.deliver` gets chunks on the event loop
    backend.cancel(job)                       # its row is free after the running step

`submit`, `cancel`, `load` and `unload` never wait for the model. `prepare`, `encode` and `check` compute and may be
called on any thread. Adapters are loaded under names that say which bytes they are, so that a name never changes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...engine.request import Chunk, Completion, Message, Request
from ...expression import Term
from ...kinds import AnyAdapter


@dataclass(eq=False)
class Job:
    """One request on its way through a backend. `deliver` is called on the event loop, at last with a completion."""

    prepared: Any
    tenant: str
    deliver: Callable[[Chunk], None]
    streaming: bool = False  # else only the last chunk is delivered
    cancelled: bool = False  # set by `cancel`
    why_cancelled: str | None = None
    arrived: float = field(default_factory=time.monotonic)
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None  # when it left the queue
    first: float | None = None  # when its first token was there
    finished: float | None = None


@dataclass(frozen=True)
class Stats:
    """What a backend is doing now."""

    running: int = 0
    waiting: int = 0
    resident: int = 0  # compositions in the bank's rows
    steps: int = 0
    seconds_busy: float = 0.0
    cache_used: float = 0.0  # share of the key/value pages
    distinct: int = 0  # different compositions among the running
    max_batch: int = 0  # rows of the batch
    tokens: int = 0  # generated since the start, of running requests too


class Backend(Protocol):
    """What the routes need of an engine."""

    tokenizer: Any
    max_context: int

    def start(self) -> None:
        """Begin to work, on the running event loop."""
        ...

    def close(self) -> None:
        """Cancel what is left and stop."""
        ...

    @property
    def alive(self) -> bool:
        """False once nothing will be answered any more."""
        ...

    def encode(self, prompt: str | list[Message] | list[int]) -> list[int]:
        """The prompt's tokens."""
        ...

    def prepare(self, request: Request, *, terms: tuple[Term, ...], tenant: str) -> Any:
        """Check a request and get it ready for loaded adapters, applied in turn; (): the base."""
        ...

    def submit(self, job: Job) -> None:
        """Queue a job. Raises `QueueFull`."""
        ...

    def cancel(self, job: Job) -> None:
        """End a job soon; it still gets its last chunk."""
        ...

    def check(self, adapter: AnyAdapter) -> None:
        """Raise `RoadkitError` where an adapter does not fit the model, or is of a kind that this engine lacks."""
        ...

    def load(self, name: str, adapter: AnyAdapter) -> None:
        """Make an adapter known before any job submitted later."""
        ...

    def unload(self, name: str) -> None:
        """Forget an adapter that no job uses."""
        ...

    def stats(self) -> Stats:
        """Figures of this moment."""
        ...


class Overflow(Exception):
    """A client reads more slowly than its answer is made, by more than the buffer holds."""


class Mailbox:
    """Chunks of several jobs on their way to one response: filled on the event loop, read by one task."""

    def __init__(self, limit: int):
        self._chunks: deque[tuple[int, Chunk]] = deque()
        self._limit = limit
        self._wake: asyncio.Future[None] | None = None
        self.overflowed = False

    def put(self, index: int, chunk: Chunk) -> bool:
        """Add a chunk; False, and no more is kept, where the reader is too far behind."""
        if len(self._chunks) >= self._limit and chunk.completion is None:
            self.overflowed = True
        if self.overflowed and chunk.completion is None:
            return False
        self._chunks.append((index, chunk))
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
        return True

    async def read(self, count: int) -> AsyncIterator[tuple[int, Chunk]]:
        """Chunks in their order, until `count` jobs have ended."""
        while count:
            while not self._chunks:
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
                self._wake = None
            index, chunk = self._chunks.popleft()
            count -= chunk.completion is not None
            yield index, chunk


def cancelled(error: str | None) -> Chunk:
    """The last chunk of a job that never started."""
    return Chunk("", (), (), Completion(text="", token_ids=[], finish_reason="cancelled", error=error))
