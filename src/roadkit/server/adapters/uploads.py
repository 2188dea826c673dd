"""`Uploads`: uploaded adapters on disk; a crash at any point leaves the old version or the new one.

    uploads = Uploads(Path("registry"))
    entry = uploads.put("acme", "formal", config, weights)
    entries = uploads.entries()                      # at start: sweeps what a killed server left behind, and nothing else

    registry/<tenant>/<name>/current.json            which version, written last and atomically
    registry/<tenant>/<name>/versions/<sha256>/      the two files, never changed; the previous version stays too

Tenants and names are percent-encoded, so no name can lead anywhere else.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from urllib.parse import unquote

from filelock import FileLock, Timeout

from ... import store
from ...errors import AdapterError, RoadkitError
from ...files import replaced_directory, write_json
from .catalog import Entry, encoded, version_of

log = logging.getLogger("roadkit.server")

POINTER = "current.json"


class Uploads:
    """One server's uploads. Raises `RoadkitError` if another server already uses the folder."""

    def __init__(self, root: Path):
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(root / ".lock", thread_local=False)  # taken and let go on different threads
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RoadkitError(f"{root} is in use by another server; give each its own --registry") from None

    def close(self) -> None:
        self._lock.release()

    def entries(self) -> list[Entry]:
        """The current version of each. Removes unfinished uploads, and versions that nothing points to."""
        found = []
        for folder in sorted(self.root.glob("_*/_*")):  # as `encoded` names them
            if not folder.is_dir() or not _is_ours(folder):
                continue
            if not (folder / POINTER).exists():
                log.warning("removing an unfinished upload: %s", folder.name)
                shutil.rmtree(folder, ignore_errors=True)
            elif (entry := self._entry(folder)) is None:  # a disk's trouble is no reason to delete anything
                log.error("%s is damaged and left out; delete it or mend it", folder)
            else:
                self._sweep(folder, keep={entry.version})
                found.append(entry)
        return found

    def put(
        self,
        tenant: str,
        name: str,
        config: bytes,
        weights: bytes,
        *,
        public: bool = False,
        pinned: bool = False,
    ) -> Entry:
        """Keep validated bytes as the current version. They are on disk when this returns."""
        folder = self._folder(tenant, name)
        version = version_of(config, weights)
        target = folder / "versions" / version
        previous = self._entry(folder)
        if not _holds(target, version):
            with replaced_directory(target) as temporary:
                (temporary / store.CONFIG).write_bytes(config)
                (temporary / store.WEIGHTS).write_bytes(weights)
        facts = {"version": version, "public": public, "pinned": pinned, "created": int(time.time())}
        write_json(folder / POINTER, facts)
        self._sweep(folder, keep={version} | ({previous.version} if previous else set()))
        return Entry(name, tenant, str(target), "upload", **facts)

    def remove(self, entry: Entry) -> None:
        """Forget an adapter: the pointer first, which is one step, then its files."""
        folder = self._folder(entry.tenant, entry.name)
        (folder / POINTER).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, tenant: str, name: str) -> Path:
        return self.root / encoded(tenant) / encoded(name)

    def _entry(self, folder: Path) -> Entry | None:
        try:
            facts = json.loads((folder / POINTER).read_bytes())
            tenant, name = (unquote(part.name)[1:] for part in (folder.parent, folder))
            entry = Entry(name, tenant, str(folder / "versions" / facts["version"]), "upload", **facts)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return entry if Path(entry.source).is_dir() else None

    def _sweep(self, folder: Path, *, keep: set[str]) -> None:
        versions = folder / "versions"
        for stale in [*versions.iterdir(), *folder.glob(f".{POINTER}.*")]:
            if stale.name in keep:
                continue
            if stale.is_dir():
                shutil.rmtree(stale, ignore_errors=True)
            else:
                stale.unlink(missing_ok=True)


def _is_ours(folder: Path) -> bool:
    """Nothing lies there but what `put` writes: a root that somebody shares with other things loses none of them."""
    return all(path.name in ("versions", POINTER) or path.name.startswith(f".{POINTER}.") for path in folder.iterdir())


def _holds(folder: Path, version: str) -> bool:
    try:
        return version_of(*store.read(folder)) == version
    except AdapterError:
        return False
