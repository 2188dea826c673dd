"""`Guard`: what every request passes before a route sees it, and what every answer passes on its way out.

    app.add_middleware(Guard, keyring=keyring, traffic=traffic, settings=settings, requests=counter, is_page=is_page)

Request id, size limit, Host and Origin, API key, counting of what is in flight. Plain ASGI: streams stay streams.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Callable

from prometheus_client import Counter
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ApiError, not_found
from ..settings import ServerSettings
from ..traffic import Traffic
from .keys import Keyring

log = logging.getLogger("roadkit.access")

OPEN = ("/health", "/ready")  # probes carry no key
CHANGE_HEADER = "x-roadkit-request"  # a page of another site cannot add it without asking first
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?", re.ASCII | re.IGNORECASE)
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


class Guard:
    """ASGI middleware. Refuses with OpenAI's error shape; `scope["state"]` gets `caller` and `request_id`.

    requests   counts answers, by route and status
    is_page    whether a path holds a page's file, the same for everybody, which needs no key
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keyring: Keyring,
        traffic: Traffic,
        settings: ServerSettings,
        requests: Counter,
        is_page: Callable[[str], bool],
    ):
        self._app, self._keyring, self._traffic, self._settings = app, keyring, traffic, settings
        self._requests, self._is_page = requests, is_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        with self._traffic.request():
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, start = Headers(scope=scope), time.monotonic()
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"], status = request_id, 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["x-request-id"] = request_id
                out["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            body = self._admit(scope, headers, receive, state)
            await self._app(scope, body, answer)
        except ApiError as error:
            await error.response(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", "(none)")
            self._requests.labels(route, status).inc()
            caller = state.get("caller")
            log.info(
                "request",
                extra={
                    "request_id": request_id,
                    "key": caller.name if caller else None,
                    "method": scope["method"] if route != "(none)" else "-",
                    "route": route,
                    "status": status,
                    "seconds": round(time.monotonic() - start, 4),
                },
            )

    def _admit(self, scope: Scope, headers: Headers, receive: Receive, state: dict) -> Receive:
        """Raise `ApiError` for a request that no route may see; returns `receive` with the size limit built in."""
        path, change = scope["path"], scope["method"] not in ("GET", "HEAD", "OPTIONS")
        page = self._is_page(path)
        if self._keyring.open:
            self._check_site(headers, page=page)
            if change and path.startswith("/v1/adapters") and CHANGE_HEADER not in headers:
                raise ApiError(403, f"changes need the header {CHANGE_HEADER} (any value) on a server without keys")
        if path not in OPEN and not page:
            state["caller"] = self._keyring.caller(headers.get("authorization"))
            if path == "/metrics" and not state["caller"].admin:
                raise not_found(path)
        if self._traffic.draining and path not in (*OPEN, "/metrics"):
            raise ApiError(503, "the server is shutting down", code="shutting_down", retry_after=5)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        upload = path == "/v1/adapters" and kind == "multipart/form-data"
        limit = self._settings.limits.max_upload if upload else self._settings.limits.max_body
        length = headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > limit:
            raise ApiError(413, f"the body has {length[:20]} bytes, at most {limit} are accepted")
        if change and scope["method"] == "POST":
            if kind != "application/json" and not upload:
                also = " or multipart/form-data" if path == "/v1/adapters" else ""
                raise ApiError(415, f"the body must be application/json{also}; send that as Content-Type")
        return _limited(receive, limit)

    def _check_site(self, headers: Headers, *, page: bool) -> None:
        """Without keys, only this machine's own names are answered: no DNS rebinding, no other site's page.

        A link to the Studio may be followed from anywhere: its files are the same for everybody and change nothing.
        """
        allowed = self._settings.allowed_hosts
        host = _host(headers.get("host", ""))
        if not (is_loopback(host) or host in allowed or "*" in allowed):
            raise ApiError(403, "this server answers local requests only; its Host header names another")
        origin = headers.get("origin")
        if origin is not None:
            site = origin.partition("://")[2]
            if site != headers.get("host"):
                raise ApiError(403, "requests from other sites' pages are refused")
        followed = page and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not followed:
            raise ApiError(403, "requests from other sites' pages are refused")


def _limited(receive: Receive, limit: int) -> Receive:
    """`receive` that stops a body of unknown length at the limit."""
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > limit:
                # the one kind of error that FastAPI lets through while it reads a body
                raise HTTPException(413, f"the body has more than {limit} bytes")
        return message

    return limited


def _host(value: str) -> str:
    """The name in a Host header, without the port; '' if it is malformed."""
    match = _HOST.fullmatch(value)
    return match[1].strip("[]").lower() if match else ""


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
