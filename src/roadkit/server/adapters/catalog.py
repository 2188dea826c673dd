"""`Catalog`: which adapters there are, whose they are, and which version of each is current.

    entry = catalog.find("acme", "formal")            # acme's own, else a public one, else None
    parse("formal*0.7", catalog.view("acme"))         # a tenant's view: names of others do not exist in it

An `Entry` is immutable: a new version is a new entry under the old name, and whoever holds the old one keeps it.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from ...errors import AdapterError
from ...expression import _NAME

SUGGESTED = 100  # names that a misspelt one is compared with
_PART = re.compile(r"[A-Za-z0-9_.@/-]+")
MAX_FILE_NAME = 200  # bytes; file systems take 255


@dataclass(frozen=True)
class Entry:
    """One version of one adapter. `version` is the SHA-256 of its two files; '' for a folder that nobody read yet."""

    name: str
    tenant: str
    source: str  # a folder, hub id or address, as `store.read` takes it
    origin: Literal["upload", "folder"]
    version: str = ""
    public: bool = False
    pinned: bool = False
    created: int = 0


def version_of(config: bytes, weights: bytes) -> str:
    """SHA-256 over both files, each preceded by its length."""
    digest = hashlib.sha256()
    for part in (config, weights):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def check_name(name: str, *, longest: int, reserved: Collection[str] = ()) -> str:
    """Raise `AdapterError` for what cannot name an adapter here."""
    if len(name) > longest:
        raise AdapterError(f"the name has {len(name)} characters, at most {longest} are allowed")
    if _NAME.fullmatch(name) is None:
        raise AdapterError(f"{name!r} is no adapter name: letters, digits and _.:/@- after a letter, digit or _")
    if any(part in ("", ".", "..") for part in name.split("/")) or name.endswith("/compose"):
        raise AdapterError(
            f"{name!r} is no adapter name: a part between '/' is empty, '.' or '..', or it ends with '/compose'"
        )
    if len(encoded(name)) > MAX_FILE_NAME:
        raise AdapterError("the name holds too many of '/', ':' and '@' to be a folder's name; use fewer")
    if name in reserved:
        raise AdapterError(f"{name!r} is the base model's name")
    return name


def encoded(name: str) -> str:
    """A tenant's or an adapter's name as a folder's: no name leads anywhere else or is hidden."""
    return quote(f"_{name}", safe="")


class Catalog:
    """Entries by tenant and name. Safe for several threads."""

    def __init__(self) -> None:
        self._own: dict[str, dict[str, Entry]] = {}
        self._public: dict[str, Entry] = {}
        self._lock = threading.Lock()

    def put(self, entry: Entry) -> None:
        """Add an entry, or a new version under an old name."""
        with self._lock:
            self._own.setdefault(entry.tenant, {})[entry.name] = entry
            self._set_public(entry.name)

    def swap(self, old: Entry, new: Entry) -> None:
        """Put a new version in the place of exactly the old one; nothing where that has moved on."""
        with self._lock:
            if self._own.get(old.tenant, {}).get(old.name) == old:
                self._own[old.tenant][old.name] = new
                self._set_public(old.name)

    def remove(self, entry: Entry) -> None:
        """Forget a name, whatever its version is by now."""
        with self._lock:
            own = self._own.get(entry.tenant, {})
            own.pop(entry.name, None)
            if not own:
                self._own.pop(entry.tenant, None)
            self._set_public(entry.name)

    def _set_public(self, name: str) -> None:
        """The public entry of a name: the first tenant's (alphabetically) that has one."""
        found = [self._own[tenant][name] for tenant in sorted(self._own) if name in self._own[tenant]]
        entry = next((entry for entry in found if entry.public), None)
        if entry is None:
            self._public.pop(name, None)
        else:
            self._public[name] = entry

    def find(self, tenant: str, name: str) -> Entry | None:
        """What a tenant means by a name."""
        return self._own.get(tenant, {}).get(name) or self._public.get(name)

    def resolve(self, tenant: str, name: str) -> tuple[Entry, str] | None:
        """The same, and the subspace that `tasks:german` names; whether there is such a one shows when it is read."""
        if (entry := self.find(tenant, name)) is not None:
            return entry, ""
        owner, _, part = name.rpartition(":")
        entry = self.find(tenant, owner) if _PART.fullmatch(part) else None
        return None if entry is None else (entry, part)

    def own(self, tenant: str, name: str) -> Entry | None:
        """A tenant's own entry of a name."""
        return self._own.get(tenant, {}).get(name)

    def visible(self, tenant: str) -> list[Entry]:
        """All that a tenant can use, by name."""
        with self._lock:
            merged = self._public | self._own.get(tenant, {})
        return [merged[name] for name in sorted(merged)]

    def all(self) -> list[Entry]:
        """Every tenant's entries."""
        with self._lock:
            return [entry for own in self._own.values() for entry in own.values()]

    def view(self, tenant: str) -> View:
        """The names a tenant can use, for parsing expressions."""
        return View(self, tenant)


class View(Collection[str]):
    """A tenant's names. Looks names up; iterates over the first `SUGGESTED` of them, which only suggestions need."""

    def __init__(self, catalog: Catalog, tenant: str):
        self._catalog, self._tenant = catalog, tenant

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._catalog.resolve(self._tenant, name) is not None

    def __iter__(self) -> Iterator[str]:
        return (entry.name for entry in itertools.islice(self._catalog.visible(self._tenant), SUGGESTED))

    def __len__(self) -> int:
        return len(self._catalog.visible(self._tenant))
