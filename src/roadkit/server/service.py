"""`Service`: everything a running server holds, for the routes to share.

service = Service(settings, keyring, backend)
factors = service.parse(caller, "formal*0.7 + german")      # [Factor] of what the caller may use
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from .. import expression
from ..errors import RoadkitError, UnknownAdapter
from .access.keys import Key, Keyring
from .access.quotas import Meter
from .adapters.catalog import Catalog, Entry
from .adapters.residents import Factor, Residents
from .adapters.uploads import Registry
from .backends.base import Backend, Job
from .errors import ApiError
from .metrics import Metrics
from .settings import Quota, Settings

log = logging.getLogger("roadkit.server")

Result = TypeVar("Result")


class Service:
    """One server. Its methods belong to the event loop, except `parse`, which `work` runs on a thread."""

    def __init__(self, settings: Settings, keyring: Keyring, backend: Backend):
        self.settings, self.keyring, self.backend = settings, keyring, backend
        self.metrics, self.catalog = Metrics(), Catalog()
        self.residents = Residents(backend, self.catalog, self.metrics, limit=settings.max_resident)
        self.registry = Registry(settings.registry) if settings.registry else None
        self.created = int(time.time())
        self.in_flight, self.draining, self.jobs = 0, False, set[Job]()
        self.changing = asyncio.Lock()  # one change of the catalog at a time
        self._meters: dict[tuple[str, Quota], Meter] = {}
        self._workers = ThreadPoolExecutor(2, thread_name_prefix="roadkit-work")
        self._changers = ThreadPoolExecutor(2, thread_name_prefix="roadkit-change")

    def start(self) -> None:
        """Begin to serve, on the running event loop."""
        self.backend.start()

    def restore(self) -> None:
        """Bring back what the registry kept; on a thread, since pinned adapters are read and checked."""
        for entry in self.registry.entries() if self.registry else []:
            self.catalog.put(entry)
            try:
                self.residents.pin(entry)
            except RoadkitError as error:
                log.error("pinned adapter %s is not kept in memory: %s", entry.name, error)

    def close(self) -> None:
        self.backend.close()
        self._workers.shutdown(wait=True)
        self._changers.shutdown(wait=True)
        if self.registry:
            self.registry.close()

    def drain(self) -> None:
        """Take nothing new; what runs may finish until `cut`."""
        self.draining = True

    def cut(self) -> None:
        """End what still runs."""
        for job in list(self.jobs):
            job.why_cancelled = "the server is shutting down"
            self.backend.cancel(job)

    async def work(self, call: Callable[[], Result]) -> Result:
        """Run what a request waits for, computing or reading, away from the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, call)

    async def change(self, call: Callable[[], Result]) -> Result:
        """Run an upload, a download or a look at folders, which may be slow: requests do not wait behind it."""
        return await asyncio.get_running_loop().run_in_executor(self._changers, call)

    def meter(self, key: Key) -> Meter:
        """What a key has used so far of its quota; another quota begins anew."""
        if (known := (key.name, key.quota)) not in self._meters:
            self._meters[known] = Meter(key.quota)
        return self._meters[known]

    def keep(
        self, tenant: str, name: str, config: bytes, weights: bytes, *, public: bool = False, pinned: bool = False
    ) -> Entry:
        """Validate, write, make current: what was validated is what is hashed, written and loaded. One at a time."""
        assert self.registry is not None, "no registry to keep an upload in"
        self.residents.validate(config, weights, origin=name)
        entry = self.registry.put(tenant, name, config, weights, public=public, pinned=pinned)
        self.catalog.put(entry)
        self.residents.pin(entry)
        return entry

    def forget(self, entry: Entry) -> None:
        """Delete an upload. Requests that use it finish."""
        assert self.registry is not None, "no registry to delete from"
        self.registry.remove(entry)
        self.catalog.remove(entry)
        self.residents.unpin(entry)

    def is_base(self, model: str) -> bool:
        return model == self.settings.model

    def parse(self, key: Key, model: str) -> list[Factor]:
        """An expression over what a caller can see; [] is the base. Raises `ApiError` or `ExpressionError`."""
        if self.is_base(model):
            return []
        if len(model) > self.settings.limits.max_expression:
            longest = self.settings.limits.max_expression
            raise ApiError(400, f"model has {len(model)} characters, at most {longest} are allowed", param="model")
        factors = []
        for term in expression.parse(model, self.catalog.view(key.tenant)):
            found = self.catalog.resolve(key.tenant, term.name)
            if found is None:  # removed between the two look-ups
                raise UnknownAdapter(f"no adapter {term.name!r}")
            factors.append(Factor(*found, term.strength))
        return factors
