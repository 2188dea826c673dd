"""`Folders`: adapters in folders that somebody else writes, watched by polling.

    folders = Folders(catalog, residents, ["adapters", "formal=/models/formal"])
    folders.start()
    folders.poll()                 # every few seconds, on a thread

A folder that changes is read once two polls have seen the same files, and becomes current if it is valid. Until then the
version in memory goes on. These adapters are public: what the operator names, every tenant may use.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from ... import store
from ...errors import RoadkitError
from ...kinds import files_in
from .catalog import Catalog, Entry, Factor
from .residents import Lease, Residents

log = logging.getLogger("roadkit.server")

TENANT = ""  # no key can have it
Signature = tuple[tuple[int, int, int], ...]


class Folders:
    """What `--adapters` named: an adapter's folder, a folder of them, or `name=` and a folder, hub id or address."""

    def __init__(self, catalog: Catalog, residents: Residents, values: Sequence[str]):
        self._catalog, self._residents, self._values = catalog, residents, values
        self._active: dict[str, Signature] = {}
        self._seen: dict[str, Signature] = {}  # at the poll before
        self._kept: dict[str, Lease] = {}  # versions whose folder is broken now

    def scan(self) -> dict[str, str]:
        """Name → source, of everything that is there now."""
        found: dict[str, str] = {}
        for value in self._values:
            name, equals, source = value.partition("=")
            if equals:
                found[name] = source
            elif files_in(value):
                found[Path(value).resolve().name] = value
            elif Path(value).is_dir():
                found |= {child.name: str(child) for child in sorted(Path(value).glob("*")) if files_in(child)}
        return {name: source for name, source in found.items() if self._nameable(name)}

    def start(self) -> None:
        """Register what is there. Raises `RoadkitError` for a value that is nothing at all."""
        for value in self._values:
            if "=" not in value and not Path(value).is_dir():
                raise RoadkitError(f"{value}: no such directory; write name=path, or a folder of adapters")
        self.poll()

    def poll(self) -> None:
        """Bring the catalog up to date."""
        found = self.scan()
        seen = {name: _signature(source) for name, source in found.items()}
        for name, signature in seen.items():
            if name not in self._active:
                if signature:  # () for a folder without files, which may be on its way
                    self._active[name] = signature
                    self._catalog.put(self._entry(name, found[name]))
            elif signature and signature != self._active[name] and signature == self._seen.get(name):
                self._active[name] = signature
                self._replace(name, found[name])
        for name in [name for name in self._active if not seen.get(name) and not self._seen.get(name)]:
            log.info("adapter %s is gone", name)
            del self._active[name]
            self._catalog.remove(self._entry(name, ""))
            self._forget(name)
        self._seen = seen

    def _replace(self, name: str, source: str) -> None:
        old, new = self._catalog.own(TENANT, name), self._entry(name, source)
        if old is not None and not old.version:  # nobody has used it yet
            self._catalog.put(new)
            return
        try:
            lease = self._residents.acquire([Factor(new)])
        except RoadkitError as error:
            log.warning("adapter %s changed and is not valid now, the version before stays: %s", name, error)
            if old is not None and name not in self._kept:
                try:
                    self._kept[name] = self._residents.acquire([Factor(old)])
                except RoadkitError:
                    log.warning("adapter %s has left memory and cannot be read", name)
            return
        self._catalog.put(self._entry(name, source, version=lease.version))
        self._residents.release(lease)
        self._forget(name)
        log.info("adapter %s has a new version", name)

    def _forget(self, name: str) -> None:
        lease = self._kept.pop(name, None)
        if lease is not None:
            self._residents.release(lease)

    def _entry(self, name: str, source: str, version: str = "") -> Entry:
        return Entry(name, TENANT, source, "folder", version, public=True, created=int(time.time()))

    def _nameable(self, name: str) -> bool:
        try:
            self._catalog.check_name(name)
        except RoadkitError as error:
            if name not in self._seen:
                log.warning("a folder is left out: %s", error)
            return False
        return True


def _signature(source: str) -> Signature:
    """What changes when either file does; a constant for what is no local folder; () if the files are missing."""
    is_local = os.path.isabs(source) or Path(source).exists() or source.count("/") != 1
    if "://" in source or not is_local:
        return ((0, 0, 0),)
    try:
        stats = [os.stat(Path(source) / name) for name in files_in(source) or store.FILES]
    except OSError:
        return ()
    return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)
