"""`Catalog`: which adapters there are, whose they are, which version of each is current, and what an expression means.

    entry = catalog.find("acme", "formal")                       # acme's own, else a public one, else None
    factors = catalog.parse("acme", "formal*0.7 + german")       # the names of other tenants do not exist for acme

An `Entry` is immutable: a new version is a new entry under the old name, and whoever holds the old one keeps it.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import quote

from ... import expression
from ...errors import AdapterError, ExpressionError, UnknownAdapter

SUGGESTED = 100  # names that a misspelt one is compared with
_PART = re.compile(r"[A-Za-z0-9_.@/-]+")
MAX_FILE_NAME = 200  # bytes; file systems take 255


@dataclass(frozen=True)
class Entry:
    """One version of one adapter. `version` is the SHA-256 of its two files; '' if nobody has read its folder yet."""

    name: str
    tenant: str
    source: str  # a folder, hub id or address, as `store.read` takes it
    origin: Literal["upload", "folder"]
    version: str = ""
    public: bool = False
    pinned: bool = False
    created: int = 0


class Factor(NamedTuple):
    """One term of an expression: a version of an adapter, or a subspace (`part`) of one that intervenes."""

    entry: Entry
    part: str = ""
    strength: float = 1.0

    @property
    def name(self) -> str:
        """As the client wrote it."""
        return f"{self.entry.name}:{self.part}" if self.part else self.entry.name


def version_of(config: bytes, weights: bytes) -> str:
    """SHA-256 over both files, each preceded by its length."""
    digest = hashlib.sha256()
    for part in (config, weights):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def encoded(name: str) -> str:
    """A tenant's or an adapter's name as a folder's: no name leads anywhere else or is hidden."""
    return quote(f"_{name}", safe="")


class Catalog:
    """Entries by tenant and name. Safe for several threads.

    base                 the base model's name, which no adapter can have
    longest_name         characters of an adapter's name at most
    longest_expression   and of an expression
    """

    def __init__(self, *, base: str, longest_name: int, longest_expression: int) -> None:
        self.base, self._longest_name, self._longest_expression = base, longest_name, longest_expression
        self._own: dict[str, dict[str, Entry]] = {}
        self._public: dict[str, Entry] = {}
        self._lock = threading.Lock()

    def check_name(self, name: str) -> None:
        """Raise `AdapterError` for what cannot name an adapter here."""
        if len(name) > self._longest_name:
            raise AdapterError(f"the name has {len(name)} characters, at most {self._longest_name} are allowed")
        expression.check_name(name)
        if any(part in ("", ".", "..") for part in name.split("/")) or name.endswith("/compose"):
            raise AdapterError(
                f"{name!r} is no adapter name: a part between '/' is empty, '.' or '..', or it ends with '/compose'"
            )
        if len(encoded(name)) > MAX_FILE_NAME:
            raise AdapterError("the name holds too many of '/', ':' and '@' to be a folder's name; use fewer")
        if name == self.base:
            raise AdapterError(f"{name!r} is the base model's name")

    def put(self, entry: Entry) -> None:
        """Add an entry, or a new version under an old name."""
        with self._lock:
            self._own.setdefault(entry.tenant, {})[entry.name] = entry
            self._set_public(entry.name)

    def swap(self, old: Entry, new: Entry) -> None:
        """Put a new version in the place of exactly the old one; nothing if that has moved on."""
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
        """As `find`, and the subspace that `tasks:german` names. Nobody has read the adapter yet: it may have no such one."""
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

    def parse(self, tenant: str, text: str) -> list[Factor]:
        """An expression over what a tenant can see; [] is the base. Equal names in it mean equal entries.

        Raises `ExpressionError`.
        """
        if text == self.base:
            return []
        if len(text) > self._longest_expression:
            raise ExpressionError(f"model has {len(text)} characters, at most {self._longest_expression} are allowed")
        terms = expression.parse(text, _View(self, tenant))
        found = {term.name: self.resolve(tenant, term.name) for term in terms}
        factors = []
        for term in terms:
            if (one := found[term.name]) is None:  # removed since it was parsed
                raise UnknownAdapter(f"no adapter {term.name!r}")
            factors.append(Factor(*one, term.strength))
        return factors


class _View(Collection[str]):
    """A tenant's names. Looks names up; iterates over the first `SUGGESTED` of them, which only suggestions need."""

    def __init__(self, catalog: Catalog, tenant: str):
        self._catalog, self._tenant = catalog, tenant

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._catalog.resolve(self._tenant, name) is not None

    def __iter__(self) -> Iterator[str]:
        return (entry.name for entry in itertools.islice(self._catalog.visible(self._tenant), SUGGESTED))

    def __len__(self) -> int:
        return len(self._catalog.visible(self._tenant))
