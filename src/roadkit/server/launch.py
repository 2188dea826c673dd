"""From options to a running process: bind, serve, drain, exit 0.

    serve(settings, keyring, backend, adapters=["adapters"], host="127.0.0.1", port=8000)

SIGTERM or SIGINT: no new requests, running ones finish or are ended after `drain_seconds`. A second signal cuts.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from ..errors import RoadkitError
from .access.guard import is_loopback
from .access.keys import Keyring
from .app import build
from .backends.base import Backend
from .settings import ServerSettings
from .traffic import Traffic

log = logging.getLogger("roadkit.server")

_PLAIN = set(vars(logging.makeLogRecord({})))


class JsonFormatter(logging.Formatter):
    """One JSON object a line; what `extra` holds becomes fields."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        facts |= {key: value for key, value in vars(record).items() if key not in _PLAIN and key != "color_message"}
        if record.exc_info:
            facts["exception"] = self.formatException(record.exc_info)
        return json.dumps(facts, ensure_ascii=False, default=str)


def check_exposure(host: str, keyring: Keyring, *, insecure: bool, tls: bool) -> None:
    """Refuse to answer strangers by accident. Raises `RoadkitError`."""
    if is_loopback(host):
        return
    if keyring.open and not insecure:
        raise RoadkitError(
            f"refusing to listen on {host} without API keys: anybody who reaches it could use and change everything; "
            "make one with `roadkit keys add NAME --keys FILE`, or say --insecure"
        )
    if not tls:
        log.warning("listening on %s without TLS: keys and prompts can be read on the way", host)


def serve(
    settings: ServerSettings,
    keyring: Keyring,
    backend: Backend,
    *,
    adapters: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    insecure: bool = False,
    tls: tuple[Path, Path] | None = None,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve until a signal comes. `ready` gets the address once it is bound."""
    check_exposure(host, keyring, insecure=insecure, tls=tls is not None)
    if insecure:  # then no name is special
        settings = settings.model_copy(update={"allowed_hosts": (*settings.allowed_hosts, host, "*")})
    app = build(settings, keyring, backend, adapters=adapters)
    config = uvicorn.Config(
        app,
        log_config=None,
        ws="none",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_seconds) + 10,
        timeout_keep_alive=75,
        h11_max_incomplete_event_size=64 << 10,
        ssl_certfile=tls[0] if tls else None,
        ssl_keyfile=tls[1] if tls else None,
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise RoadkitError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    shown = f"[{host}]" if ":" in host else host
    ready(f"{'https' if tls else 'http'}://{shown}:{sock.getsockname()[1]}")
    gc.collect()
    gc.freeze()  # the model's objects need no more looking at
    DrainingServer(config, app.state.service.traffic, settings.drain_seconds).run(sockets=[sock])


class DrainingServer(uvicorn.Server):
    """uvicorn, with our own order of shutting down: drain, cut, stop listening."""

    def __init__(self, config: uvicorn.Config, traffic: Traffic, drain_seconds: float):
        super().__init__(config)
        self._traffic, self._drain_seconds = traffic, drain_seconds

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._traffic.draining:
            self.should_exit = self.force_exit = True
            self._traffic.cut()
            return
        log.info("draining", extra={"in_flight": self._traffic.in_flight})
        self._traffic.drain()
        self._leaving = asyncio.get_running_loop().create_task(self._leave())

    async def _leave(self) -> None:
        """Answer with 503 until what ran has ended or its time is over; uvicorn stops listening as soon as it is told."""
        over = time.monotonic() + self._drain_seconds
        while self._traffic.in_flight and time.monotonic() < over:
            await asyncio.sleep(0.05)
        self._traffic.cut()
        self.should_exit = True
