"""`Service`: the parts of a running server, for the routes to share.

service = Service(ServerSettings(model="smollm2"), keyring, backend)
factors = service.catalog.parse("acme", "formal*0.7 + german")
lease = await service.threads.work(lambda: service.residents.acquire(factors))
"""

from __future__ import annotations

import asyncio
import time

from .access.keys import Keyring
from .access.quotas import Meters
from .adapters.catalog import Catalog
from .adapters.inventory import Inventory
from .adapters.residents import Residents
from .adapters.uploads import Uploads
from .backends.base import Backend
from .metrics import Metrics
from .settings import ServerSettings
from .threads import Threads
from .traffic import Traffic


class Service:
    """One server. `changing` is held by whoever changes the inventory."""

    def __init__(self, settings: ServerSettings, keyring: Keyring, backend: Backend):
        limits = settings.limits
        self.settings, self.keyring, self.backend = settings, keyring, backend
        self.created = int(time.time())
        self.traffic, self.threads, self.meters, self.metrics = Traffic(), Threads(), Meters(), Metrics()
        self.catalog = Catalog(
            base=settings.model, longest_name=limits.max_name, longest_expression=limits.max_expression
        )
        self.residents = Residents(backend, self.catalog, self.metrics, limit=settings.max_resident)
        uploads = Uploads(settings.registry) if settings.registry else None
        self.inventory = Inventory(self.catalog, self.residents, uploads)
        self.changing = asyncio.Lock()

    async def start(self) -> None:
        """Begin to serve, on the running event loop."""
        self.backend.start()
        await self.threads.work(self.inventory.restore)

    def close(self) -> None:
        """Stop; on a thread, since it waits for what runs."""
        self.backend.close()
        self.threads.close()
        self.inventory.close()
