"""`Residents`: adapters and compositions in memory, loaded into the backend while somebody needs them.

    lease = residents.acquire([(entry, 0.7), (other, 1.0)])      # reads and composes on the calling thread
    ... lease.name ...                                           # what the backend knows the composition as
    residents.release(lease)

A name is made of content hashes and strengths, so it never changes its meaning: a request keeps the versions it
started with. Unused compositions leave, least recently used first, beyond `limit`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .. import expression, store
from ..adapter import Adapter
from ..errors import AdapterError, ExpressionError, RoadkitError
from ..expression import MAX_ENTRY, Term
from .catalog import Catalog, Entry, version_of
from .metrics import Metrics
from .protocol import Backend

log = logging.getLogger("roadkit.server")


@dataclass(eq=False)
class Lease:
    """A composition in memory and who uses it."""

    name: str
    adapter: Adapter
    users: int = 0


class Residents:
    """Safe for several threads; one of them reads or composes at a time."""

    def __init__(self, backend: Backend, catalog: Catalog, metrics: Metrics, *, limit: int):
        self._backend, self._catalog, self._metrics, self._limit = backend, catalog, metrics, limit
        self._leases: OrderedDict[str, Lease] = OrderedDict()
        self._lock = threading.Lock()
        self._pinned: dict[tuple[str, str], Lease] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def acquire(self, factors: Sequence[tuple[Entry, float]]) -> Lease:
        """A composition, ready in the backend. Raises `RoadkitError` for what cannot be read or composed."""
        with self._lock:
            lease = self._composition(factors)
            lease.users += 1
            self._leases.move_to_end(lease.name)
            return lease

    def release(self, lease: Lease) -> None:
        """Done with a composition; it stays in memory until its place is needed."""
        with self._lock:
            lease.users -= 1
            self._evict()

    def pin(self, entry: Entry) -> None:
        """Keep an adapter's current version in memory, or no version of it any more."""
        lease = self.acquire([(entry, 1.0)]) if entry.pinned else None
        key = (entry.tenant, entry.name)
        old = self._pinned.pop(key, None)
        if lease is not None:
            self._pinned[key] = lease
        if old is not None:
            self.release(old)

    def validate(self, config: bytes, weights: bytes, *, origin: str) -> Adapter:
        """Parse bytes that are to be served: sound, of this model, and bounded. Raises `AdapterError`."""
        adapter = store.parse(config, weights, origin=origin)
        self._backend.check(adapter)
        largest = float(torch.maximum(adapter.a.abs().max(), adapter.b.abs().max()))
        if largest > MAX_ENTRY:
            raise AdapterError(f"{origin}: its rotation grows to {largest:.3g} in one entry, at most {MAX_ENTRY:g} is served")
        adapter.content_hash  # noqa: B018  computed here, not between two steps of the engine
        return adapter

    # ---- inside, under the lock --------------------------------------------------------------------------------

    def _composition(self, factors: Sequence[tuple[Entry, float]]) -> Lease:
        singles = [self._single(entry) for entry, _ in factors]
        if len(factors) == 1 and factors[0][1] == 1.0:
            return singles[0]
        terms = tuple(Term(lease.name, weight) for lease, (_, weight) in zip(singles, factors, strict=True))
        name = hashlib.sha256(expression.canonical(terms).encode()).hexdigest()[:32]
        if name not in self._leases:
            try:
                adapter = expression.compose(terms, {lease.name: lease.adapter for lease in singles})
            except RoadkitError as error:  # in the client's names, not ours
                text = str(error)
                for lease, (entry, _) in zip(singles, factors, strict=True):
                    text = text.replace(lease.name, entry.name)
                raise type(error)(text) from None
            self._add(name, adapter)
        return self._leases[name]

    def _single(self, entry: Entry) -> Lease:
        name = entry.version[:32]
        if name and name in self._leases:
            self._leases.move_to_end(name)
            return self._leases[name]
        start = time.perf_counter()
        try:
            config, weights = store.read(entry.folder)
        except AdapterError as error:
            log.warning("adapter %s cannot be read: %s", entry.name, error)
            raise ExpressionError(f"no adapter {entry.name!r} any more") from None
        version = version_of(config, weights)
        if entry.version and version != entry.version and entry.origin == "upload":
            log.error("the stored files of %s do not have the hash they were accepted with", entry.name)
            raise AdapterError(f"adapter {entry.name!r} is damaged on the server")
        name = version[:32]
        if name not in self._leases:
            self._add(name, self.validate(config, weights, origin=entry.name))
            self._metrics.load_seconds.observe(time.perf_counter() - start)
        if version != entry.version and self._catalog.own(entry.tenant, entry.name) == entry:
            self._catalog.put(dataclasses.replace(entry, version=version))
        return self._leases[name]

    def _add(self, name: str, adapter: Adapter) -> None:
        adapter.content_hash  # noqa: B018  computed here, not between two steps of the engine
        self._backend.load(name, adapter)
        self._leases[name] = Lease(name, adapter)
        self._metrics.loads.inc()

    def _evict(self) -> None:
        idle = [name for name, lease in self._leases.items() if lease.users <= 0]
        for name in idle[: max(0, len(idle) - self._limit)]:
            del self._leases[name]
            self._backend.unload(name)
            self._metrics.evictions.inc()
