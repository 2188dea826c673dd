"""Where an admin may load adapters from, other than an upload: prefixes that the operator allowed, empty by default.

    config, weights = fetch("s3://bucket/adapters/formal", allowed=("s3://bucket/adapters/",), limit=1 << 28)

No chained addresses, no `file:`, no private addresses, and no more bytes than an upload may have. Over HTTP a
connection goes to the very address that was found public, and every redirect passes the same checks as the source.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import time
from collections.abc import Collection
from urllib.parse import unquote, urljoin, urlsplit

import httpx

from ... import store
from ...errors import AdapterError

log = logging.getLogger("roadkit.server")

LOCAL_SCHEMES = ("", "file", "local", "memory", "simplecache", "filecache", "blockcache", "reference", "zip", "tar")
MAX_REDIRECTS = 5
MAX_SECONDS = 300.0  # for one file


def check(address: str, *, allowed: Collection[str]) -> None:
    """Raise the same `AdapterError` for every address that may not be read, so that nothing can be probed."""
    parts = _parts(address)
    path = unquote(parts.path)
    if "::" in address or parts.scheme in LOCAL_SCHEMES or ".." in path.split("/") or "\\" in address:
        raise _refused(address)
    if parts.query or parts.fragment or parts.username is not None:
        raise _refused(address)
    if not any(_covers(prefix, address) for prefix in allowed):
        raise _refused(address)
    if parts.scheme in ("http", "https"):
        _public_address(address)


def fetch(address: str, *, allowed: Collection[str], limit: int) -> tuple[bytes, bytes]:
    """The two files of an allowed address, each read once."""
    check(address, allowed=allowed)
    contents = []
    for name in (store.CONFIG, store.WEIGHTS):
        file = f"{address.rstrip('/')}/{name}"
        try:
            read = _read_http if address.startswith(("http://", "https://")) else _read_fsspec
            data = read(file, allowed, limit)
        except AdapterError:
            raise
        except Exception as error:  # every fsspec backend raises its own kinds
            log.warning("source %s: %s", address, error)
            raise AdapterError(f"{address[:200]!r} cannot be read: {type(error).__name__}") from None
        if len(data) > limit:
            raise AdapterError(f"{address[:200]!r}: {name} has more than {limit} bytes")
        contents.append(data)
    return contents[0], contents[1]


def _read_fsspec(file: str, allowed: Collection[str], limit: int) -> bytes:
    import fsspec

    with fsspec.open(file, "rb") as opened:
        return opened.read(limit + 1)  # type: ignore[union-attr]


def _read_http(file: str, allowed: Collection[str], limit: int) -> bytes:
    """At most limit + 1 bytes of a file, through redirects that stay within what is allowed."""
    deadline = time.monotonic() + MAX_SECONDS
    with httpx.Client(trust_env=False, timeout=10) as http:
        for _ in range(MAX_REDIRECTS + 1):
            check(file, allowed=allowed)
            parts = _parts(file)
            # to the address that was checked, whatever the name means a moment later
            pinned = httpx.URL(file).copy_with(host=_public_address(file))
            headers = {"Host": parts.netloc, "Accept-Encoding": "identity"}
            extensions = {"sni_hostname": parts.hostname}
            with http.stream("GET", pinned, headers=headers, extensions=extensions) as answer:
                if answer.is_redirect:
                    file = urljoin(file, answer.headers["location"])
                    continue
                answer.raise_for_status()
                data = bytearray()
                for piece in answer.iter_raw(1 << 16):
                    data += piece
                    if len(data) > limit:
                        break
                    if time.monotonic() > deadline:
                        raise AdapterError(f"{file[:200]!r} was not read within {MAX_SECONDS:g} s")
                return bytes(data)
    raise AdapterError(f"{file[:200]!r}: more than {MAX_REDIRECTS} redirects")


def _covers(prefix: str, address: str) -> bool:
    """Whether an address lies under a prefix; 's3://mine' does not cover 's3://mine-too'."""
    return address.startswith(prefix if prefix.endswith("/") else prefix + "/")


def _public_address(address: str) -> str:
    """An address of the host. Raises `AdapterError` unless all that it has are public."""
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(_parts(address).hostname or "", None)]
    except (OSError, UnicodeError):
        raise _refused(address) from None
    if not found or not all(map(_is_public, found)):
        raise _refused(address)
    return found[0]


def _is_public(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_global


def _parts(address: str):
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:
        raise _refused(address) from None
    return parts


def _refused(address: str) -> AdapterError:
    return AdapterError(f"{address[:200]!r} is not among the sources this server may load from")
