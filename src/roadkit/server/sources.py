"""Where an admin may load adapters from, other than an upload: prefixes that the operator allowed, empty by default.

    config, weights = fetch("s3://bucket/adapters/formal", allowed=("s3://bucket/adapters/",), limit=1 << 28)

No chained addresses, no `file:`, no private addresses, no redirects, and no more bytes than an upload may have.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Collection
from urllib.parse import unquote, urlsplit

from .. import store
from ..errors import AdapterError

log = logging.getLogger("roadkit.server")

LOCAL_SCHEMES = ("", "file", "local", "memory", "simplecache", "filecache", "blockcache", "reference", "zip", "tar")


def check(address: str, *, allowed: Collection[str]) -> None:
    """Raise the same `AdapterError` for every address that may not be read, so that nothing can be probed."""
    refused = AdapterError(f"{address[:200]!r} is not among the sources this server may load from")
    parts = urlsplit(address)
    path = unquote(parts.path)
    if "::" in address or parts.scheme in LOCAL_SCHEMES or ".." in path.split("/") or "\\" in address:
        raise refused
    if parts.query or parts.fragment or parts.username is not None:
        raise refused
    if not any(_covers(prefix, address) for prefix in allowed):
        raise refused
    if parts.scheme in ("http", "https"):
        _check_public(parts.hostname or "", refused)


def fetch(address: str, *, allowed: Collection[str], limit: int) -> tuple[bytes, bytes]:
    """The two files of an allowed address, each read once."""
    import fsspec

    check(address, allowed=allowed)
    # aiohttp's own switch: a redirect could leave the prefix after the check
    options = {"client_kwargs": {}, "allow_redirects": False} if address.startswith(("http:", "https:")) else {}
    contents = []
    for name in (store.CONFIG, store.WEIGHTS):
        try:
            with fsspec.open(f"{address.rstrip('/')}/{name}", "rb", **options) as file:
                data = file.read(limit + 1)  # type: ignore[union-attr]
        except Exception as error:  # every fsspec backend raises its own kinds
            log.warning("source %s: %s", address, error)
            raise AdapterError(f"{address[:200]!r} cannot be read: {type(error).__name__}") from None
        if len(data) > limit:
            raise AdapterError(f"{address[:200]!r}: {name} has more than {limit} bytes")
        contents.append(data)
    return contents[0], contents[1]


def _covers(prefix: str, address: str) -> bool:
    """Whether an address lies under a prefix; 's3://mine' does not cover 's3://mine-too'."""
    return address.startswith(prefix if prefix.endswith("/") else prefix + "/")


def _check_public(host: str, refused: AdapterError) -> None:
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        raise refused from None
    if not all(ipaddress.ip_address(str(address).partition("%")[0]).is_global for address in found):
        raise refused
