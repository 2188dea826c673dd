"""API keys: 32 random bytes that only their owner keeps; the server knows SHA-256 digests.

    text, key = new_key("ci", tenant="acme")          # `text` is shown once
    caller = Keyring.load(path).caller("Bearer rk-…")

A key belongs to a tenant. `admin` may change adapters of every tenant and read `/metrics`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from ...errors import RoadkitError, nearest
from ...files import write_atomic
from ..errors import ApiError
from ..settings import Frozen, Quota

log = logging.getLogger("roadkit.server")

VARIABLE = "ROADKIT_KEYS"  # the file's content, instead of a file
LOCAL = "local"  # the tenant of a server without keys


class Key(Frozen):
    """What is kept of a key. `sha256` is of its text."""

    name: str = Field(min_length=1, max_length=100)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tenant: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")
    admin: bool = False
    quota: Quota = Quota()


def new_key(name: str, *, tenant: str, admin: bool = False, quota: Quota | None = None) -> tuple[str, Key]:
    """A fresh key: its text, and what to keep."""
    text = f"rk-{secrets.token_urlsafe(32)}"
    return text, Key(name=name, sha256=_digest(text), tenant=tenant, admin=admin, quota=quota or Quota())


class Keyring:
    """The keys of a server. `path` is their file, which `refresh` reads again if it has changed."""

    def __init__(self, keys: tuple[Key, ...] = (), path: Path | None = None):
        names = [key.name for key in keys]
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise RoadkitError(f"two keys are called {double!r}")
        self.keys, self.path = keys, path
        self._stamp: tuple[int, ...] = ()  # the first `refresh` reads again what may have changed since it was read

    @property
    def open(self) -> bool:
        """No key was ever asked for: everybody on this machine is the admin of one tenant."""
        return not self.keys and self.path is None

    def refresh(self) -> None:
        """Take over what the file says now. A file that is gone or cannot be read changes nothing; one without keys lets
        nobody in.
        """
        if not (stamp := _stamp(self.path)) or stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            found = Keyring.load(self.path).keys
        except (OSError, RoadkitError) as error:
            log.error("the keys stay as they were: %s", error)
            return
        if found != self.keys:
            self.keys = found
            log.info("the keys changed", extra={"keys": len(found)})

    @classmethod
    def load(cls, path: Path | None) -> Keyring:
        """Read a file, or `$ROADKIT_KEYS`, or nothing."""
        if path is None:
            text = os.environ.get(VARIABLE, "")
        else:
            text = path.read_text() if path.exists() else ""
        if not text.strip():
            return cls(path=path)
        try:
            return cls(tuple(TypeAdapter(list[Key]).validate_python(json.loads(text)["keys"])), path)
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            holder = str(path) if path else f"${VARIABLE}"
            raise RoadkitError(f"{holder} holds no keys: {type(error).__name__} (its content is not shown)") from None

    @classmethod
    def read(cls, path: Path) -> Keyring:
        """The keys of a file, none if it does not exist."""
        return cls.load(path) if path.exists() else cls(path=path)

    def adding(self, key: Key) -> Keyring:
        """These keys and one more. Raises `RoadkitError` if the name is taken."""
        return Keyring((*self.keys, key), self.path)

    def without(self, name: str) -> Keyring:
        """These keys but one. Raises `RoadkitError` if there is no key of that name."""
        kept = tuple(key for key in self.keys if key.name != name)
        if len(kept) == len(self.keys):
            names = [key.name for key in self.keys]
            raise RoadkitError(
                f"there is no key {name!r}{nearest(name, names)}; there are {', '.join(names) or 'none'}"
            )
        return Keyring(kept, self.path)

    def save(self, path: Path) -> None:
        """Write the file, readable by its owner alone."""
        rows = [key.model_dump(mode="json", exclude_defaults=True) for key in self.keys]
        write_atomic(path, json.dumps({"keys": rows}, indent=2) + "\n", mode=0o600)

    def caller(self, authorization: str | None) -> Key:
        """Whose request this is. Raises `ApiError` 401. Every digest is compared, each in constant time."""
        if self.open:
            return Key(name=LOCAL, sha256="0" * 64, tenant=LOCAL, admin=True)
        scheme, _, text = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            raise ApiError(401, "you did not provide an API key; send it as 'Authorization: Bearer rk-…'")
        digest, found = _digest(text.strip()), None
        for key in self.keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if found is None:
            raise ApiError(401, "incorrect API key provided", code="invalid_api_key")
        return found


def _stamp(path: Path | None) -> tuple[int, ...]:
    """What changes when a file is replaced or written to."""
    try:
        found = path.stat() if path else None
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_size, found.st_ino) if found else ()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
