"""`Inventory`: changes of what there is, each on disk, in the catalog and in memory.

inventory = Inventory(catalog, residents, Uploads(Path("registry")))
inventory.restore()
entry = inventory.keep("acme", "formal", config, weights)
inventory.forget(entry)
"""

from __future__ import annotations

import logging

from ...errors import RoadkitError
from .catalog import Catalog, Entry
from .residents import Residents
from .uploads import Uploads

log = logging.getLogger("roadkit.server")


class Inventory:
    """Its methods belong to a thread, one of them at a time. `uploads` is None on a server that keeps none."""

    def __init__(self, catalog: Catalog, residents: Residents, uploads: Uploads | None):
        self.uploads, self._catalog, self._residents = uploads, catalog, residents

    def restore(self) -> None:
        """Bring back what was uploaded before the server was last stopped."""
        for entry in self.uploads.entries() if self.uploads else []:
            self._catalog.put(entry)
            try:
                self._residents.pin(entry)
            except RoadkitError as error:
                log.error("pinned adapter %s is not kept in memory: %s", entry.name, error)

    def keep(
        self, tenant: str, name: str, config: bytes, weights: bytes, *, public: bool = False, pinned: bool = False
    ) -> Entry:
        """Validate, write, make current: what was validated is what is hashed, written and loaded."""
        assert self.uploads is not None, "this server keeps no uploads"
        self._residents.validate(config, weights, origin=name)
        entry = self.uploads.put(tenant, name, config, weights, public=public, pinned=pinned)
        self._catalog.put(entry)
        self._residents.pin(entry)
        return entry

    def forget(self, entry: Entry) -> None:
        """Delete an upload. Requests that use it finish."""
        assert self.uploads is not None, "this server keeps no uploads"
        self.uploads.remove(entry)
        self._catalog.remove(entry)
        self._residents.unpin(entry)

    def close(self) -> None:
        """Let another server use the folder of the uploads."""
        if self.uploads is not None:
            self.uploads.close()
