"""`Residents`: adapters and compositions in memory, loaded into the backend while somebody needs them.

    lease = residents.acquire([Factor(entry, strength=0.7), Factor(other)])     # reads and composes on this thread
    ... lease.terms ...                                                         # what the backend is asked for
    residents.release(lease)

A name is made of content hashes and strengths, so it never changes its meaning: a request keeps the versions it
started with. Unused compositions leave, least recently used first, beyond `limit`. Rotations of linear layers are
composed here, into one; what intervenes on hidden states is handed to the backend in its terms.
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

from ... import expression, kinds
from ...adapter import Adapter
from ...errors import AdapterError, UnknownAdapter, nearest
from ...expression import MAX_ENTRY, Term
from ...kinds import AnyAdapter
from ..backends.base import Backend
from ..metrics import Metrics
from .catalog import Catalog, Entry, Factor, version_of

log = logging.getLogger("roadkit.server")

MAX_SOUND = 4096  # expressions that were composed once and are known to be sound


@dataclass(eq=False)
class Lease:
    """A composition in memory and how many use it.

    name      what the backend knows it by; '' if it holds `parts`
    adapter   its value; the first of several `parts`
    version   SHA-256 of its files; '' for a composition
    terms     what the backend is asked for
    parts     what it consists of, if it intervenes and so has no value of its own
    """

    name: str
    adapter: AnyAdapter
    version: str = ""
    users: int = 0
    terms: tuple[Term, ...] = ()
    parts: tuple[Lease, ...] = ()

    @property
    def intervenes(self) -> bool:
        """Whether it rotates hidden states, and not layers' outputs alone."""
        return self.adapter.positions is not None or bool(self.parts)


class Residents:
    """Safe for several threads; one of them reads or composes at a time, and `release` never waits for that."""

    def __init__(self, backend: Backend, catalog: Catalog, metrics: Metrics, *, limit: int):
        self._backend, self._catalog, self._metrics, self._limit = backend, catalog, metrics, limit
        self._leases: OrderedDict[str, Lease] = OrderedDict()
        self._lock = threading.Lock()  # held for a look-up at most: the event loop takes it too
        self._building = threading.Lock()  # held while something is read or composed
        self._pinned: dict[tuple[str, str], Lease] = {}
        self._sound: OrderedDict[str, None] = OrderedDict()  # expressions that intervene

    def __len__(self) -> int:
        return len(self._leases)

    def holds(self, entry: Entry) -> bool:
        """Whether the current version of an adapter is in memory."""
        return bool(entry.version) and entry.version[:32] in self._leases

    def acquire(self, factors: Sequence[Factor]) -> Lease:
        """A composition, ready in the backend. Factors of equal names must be of equal entries (`Catalog.parse`).

        Raises `RoadkitError` for what cannot be read or composed.
        """
        held: dict[Entry, Lease] = {}
        try:
            for factor in factors:
                if factor.entry not in held:
                    held[factor.entry] = self._single(factor.entry)
                _check_part(factor, held[factor.entry].adapter)
            if len(factors) == 1 and factors[0].strength == 1.0 and not factors[0].part:
                return held.pop(factors[0].entry)
            singles = [held[factor.entry] for factor in factors]
            terms = tuple(
                Term(f"{lease.name}:{factor.part}" if factor.part else lease.name, factor.strength)
                for lease, factor in zip(singles, factors, strict=True)
            )
            if any(lease.adapter.positions is not None for lease in singles):
                self._check_sound(factors, singles, terms)
                lease = Lease("", singles[0].adapter, terms=terms, parts=tuple(held.values()))
                held.clear()  # they are released with the lease
                return lease
            return self._composition(factors, singles, terms)
        finally:
            for lease in held.values():
                self.release(lease)

    def release(self, lease: Lease) -> None:
        """Done with a composition; it stays in memory until its place is needed."""
        for part in lease.parts:
            self.release(part)
        if lease.parts:
            return
        with self._lock:
            lease.users -= 1
            if lease.users <= 0:
                self._evict()

    def pin(self, entry: Entry) -> None:
        """Keep the current version in memory if the entry is pinned, and earlier versions no longer."""
        lease = self.acquire([Factor(entry)]) if entry.pinned else None
        self.unpin(entry)
        if lease is not None:
            self._pinned[entry.tenant, entry.name] = lease

    def unpin(self, entry: Entry) -> None:
        """Let a pinned adapter leave memory."""
        old = self._pinned.pop((entry.tenant, entry.name), None)
        if old is not None:
            self.release(old)

    def validate(self, config: bytes, weights: bytes, *, origin: str) -> AnyAdapter:
        """Parse bytes that are to be served: sound, of this model, and bounded. Raises `AdapterError`."""
        adapter = kinds.parse(config, weights, origin=origin)
        self._backend.check(adapter)
        rotation = adapter.rotation
        largest = float(torch.maximum(rotation.a.abs().max(), rotation.b.abs().max()))
        if largest > MAX_ENTRY:
            raise AdapterError(
                f"{origin}: its rotation grows to {largest:.3g} in one entry, at most {MAX_ENTRY:g} is served"
            )
        adapter.content_hash  # noqa: B018  computed here, not between two steps of the engine
        return adapter

    # ---- inside; every lease that is returned counts one more user ---------------------------------------------

    def _hold(self, name: str) -> Lease | None:
        with self._lock:
            lease = self._leases.get(name)
            if lease is not None:
                lease.users += 1
                self._leases.move_to_end(name)
            return lease

    def _add(self, name: str, adapter: AnyAdapter, version: str = "") -> Lease:
        adapter.content_hash  # noqa: B018  computed here, not between two steps of the engine
        with self._lock:
            self._backend.load(name, adapter)
            lease = self._leases[name] = Lease(name, adapter, version, 1, (Term(name, 1.0),))
            self._metrics.loads.inc()
            return lease

    def _evict(self) -> None:
        idle = [name for name, lease in self._leases.items() if lease.users <= 0]
        for name in idle[: max(0, len(idle) - self._limit)]:
            del self._leases[name]
            self._backend.unload(name)
            self._metrics.evictions.inc()

    def _composition(self, factors: Sequence[Factor], singles: Sequence[Lease], terms: tuple[Term, ...]) -> Lease:
        name = hashlib.sha256(expression.canonical(terms).encode()).hexdigest()[:32]
        if (lease := self._hold(name)) is not None:
            return lease
        with self._building:
            if (lease := self._hold(name)) is not None:
                return lease
            return self._add(name, self._compose(factors, singles))

    def _check_sound(self, factors: Sequence[Factor], singles: Sequence[Lease], terms: tuple[Term, ...]) -> None:
        """Raise what composing them would raise; once for each expression, whose names never change their meaning."""
        key = expression.canonical(terms)
        if key not in self._sound:
            self._compose(factors, singles)
            self._sound[key] = None
            while len(self._sound) > MAX_SOUND:
                self._sound.popitem(last=False)

    def _compose(self, factors: Sequence[Factor], singles: Sequence[Lease]) -> Adapter:
        """All rotations as one, computed under the client's names, so that a `RoadkitError` speaks of them."""
        kinds.common_positions(lease.adapter for lease in singles)
        terms = tuple(Term(factor.name, factor.strength) for factor in factors)
        rotations = {
            factor.name: (lease.adapter.parts[factor.part] if factor.part else lease.adapter).rotation
            for factor, lease in zip(factors, singles, strict=True)
        }
        return expression.compose(terms, rotations)

    def _single(self, entry: Entry) -> Lease:
        if entry.version and (lease := self._hold(entry.version[:32])) is not None:
            return lease
        with self._building:
            if entry.version and (lease := self._hold(entry.version[:32])) is not None:
                return lease
            start = time.perf_counter()
            config, weights = self._read(entry)
            version = version_of(config, weights)
            if entry.origin == "upload" and version != entry.version:
                log.error("the stored files of %s do not have the hash they were accepted with", entry.name)
                raise AdapterError(f"adapter {entry.name!r} is damaged on the server")
            lease = self._hold(version[:32])
            if lease is None:
                lease = self._add(version[:32], self.validate(config, weights, origin=entry.name), version)
                self._metrics.load_seconds.observe(time.perf_counter() - start)
        if version != entry.version:
            self._catalog.swap(entry, dataclasses.replace(entry, version=version))
        return lease

    def _read(self, entry: Entry) -> tuple[bytes, bytes]:
        try:
            return kinds.read(entry.source)
        except AdapterError as error:  # the message names the server's folders
            log.warning("adapter %s cannot be read: %s", entry.name, error)
            raise UnknownAdapter(f"no adapter {entry.name!r} any more") from None


def _check_part(factor: Factor, adapter: AnyAdapter) -> None:
    if factor.part and factor.part not in adapter.parts:
        close = nearest(factor.name, [f"{factor.entry.name}:{label}" for label in adapter.parts])
        raise UnknownAdapter(f"no adapter {factor.name!r}{close}")
