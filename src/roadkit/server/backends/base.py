"""The seam between the routes and the engines: what each engine can do, and how it is asked for it.

    if generates(backend):                         # then it is a `GeneratingBackend`
        prepared = backend.prepare(request, terms=lease.terms, tenant="acme")
        job = GenerationJob(tenant="acme", prepared=prepared, deliver=print)
        backend.submit(job)                        # at once; `deliver` gets chunks on the event loop
        backend.cancel(job)                        # its row is free after the running step

Every backend hosts adapters. Beside that it generates text or encodes texts, and takes jobs of that one kind. `submit`,
`cancel`, `load` and `unload` never wait for the model. `prepare`, `encode` and `check` compute and may be called on any
thread. Adapters are loaded under names that say which bytes they are, so that a name never changes its meaning.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeGuard, TypeVar

from ...engine.prompts import Prompt
from ...engine.request import Chunk, Completion, Request
from ...expression import Term
from ...kinds import AnyAdapter

Ability = Literal["generate", "chat", "embed", "classify"]
EncodingTask = Literal["embed", "classify"]
Vector = list[float]


@dataclass(eq=False, kw_only=True)
class Job:
    """One piece of work on its way through a backend."""

    tenant: str
    cancelled: bool = False  # set by `cancel`
    why_cancelled: str | None = None


@dataclass(eq=False, kw_only=True)
class GenerationJob(Job):
    """One answer. `deliver` is called on the event loop, at last with a completion. Times are of `time.monotonic`."""

    prepared: Any
    deliver: Callable[[Chunk], None]
    streaming: bool = False  # else only the last chunk is delivered
    arrived: float = field(default_factory=time.monotonic)
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None  # when it left the queue
    first: float | None = None  # when its first token was there
    finished: float | None = None


@dataclass(eq=False, kw_only=True)
class EncodingJob(Job):
    """One text for one adapter (None: the base). `deliver` is called once, on the event loop: a vector or logits, or an error."""

    token_ids: list[int]
    adapter: str | None
    task: EncodingTask
    deliver: Callable[[Vector | Exception], None]


JobT = TypeVar("JobT", bound=Job, contravariant=True)


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
    """What every engine does for the server: it hosts adapters, and says what it can do with them."""

    @property
    def abilities(self) -> frozenset[Ability]:
        """What requests may ask of it."""
        ...

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

    def check(self, adapter: AnyAdapter) -> None:
        """Raise `RoadkitError` if an adapter does not fit the model, or is of a kind that this engine lacks."""
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


class TakesJobs(Protocol[JobT]):
    """Queues work, and ends it early."""

    def submit(self, job: JobT) -> None:
        """Queue a job. Raises `QueueFull`."""
        ...

    def cancel(self, job: JobT) -> None:
        """End a job soon. Its last delivery still comes: at once if the job waits, else with what the engine does now."""
        ...


class GeneratingBackend(Backend, TakesJobs[GenerationJob], Protocol):
    """A backend that can 'generate'; it can 'chat' too if its model has a chat template."""

    tokenizer: Any
    max_context: int

    def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens. Raises `RequestError`."""
        ...

    def prepare(self, request: Request, *, terms: tuple[Term, ...], tenant: str) -> Any:
        """Check a request and get it ready for loaded adapters, applied in turn; (): the base. Raises `RequestError`."""
        ...


class EncodingBackend(Backend, TakesJobs[EncodingJob], Protocol):
    """A backend that can 'embed'; it can 'classify' too if its model has a classification head.

    vector_size   numbers of an embedding
    own_head      whether the base classifies; else only adapters that bring a head do
    labels        class → its name, of the base's own head
    """

    vector_size: int
    own_head: bool
    labels: Mapping[int, str]

    def encode(self, text: str | list[int]) -> list[int]:
        """The text's tokens. Raises `RequestError`; `ContextTooLong` for more than the model reads, which is not cut."""
        ...


def generates(backend: Backend) -> TypeGuard[GeneratingBackend]:
    """Whether a backend takes `GenerationJob`s."""
    return "generate" in backend.abilities


def encodes(backend: Backend) -> TypeGuard[EncodingBackend]:
    """Whether a backend takes `EncodingJob`s."""
    return "embed" in backend.abilities


def generating_abilities(tokenizer: Any) -> frozenset[Ability]:
    """What a generating engine can do with a model's tokenizer."""
    return frozenset(("generate", "chat") if getattr(tokenizer, "chat_template", None) else ("generate",))


def cancelled(error: str | None) -> Chunk:
    """The last chunk of a job that never started."""
    return Chunk("", (), (), Completion(text="", token_ids=[], finish_reason="cancelled", error=error))
