"""`Worker`: the thread that owns a model. Others hand it closures and never wait for it.

worker = Worker("roadkit-engine", run)      # run() is the thread's own loop; it calls listen() between steps
worker.start()                              # inside the event loop that will get the answers
worker.tell(lambda: engine.add_adapter(name, adapter))
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable

log = logging.getLogger("roadkit.server")


class Worker:
    """`tell` and `close` belong to any thread, `listen` and `answer` to the worker's own."""

    def __init__(self, name: str, run: Callable[[], None]):
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=run, name=name, daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.closing = False

    def start(self) -> None:
        """Begin; answers go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """Let `run` see `closing`, and wait for it to end."""
        self.closing = True
        self.tell(None)
        self._thread.join(timeout=30)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def tell(self, command: Callable[[], None] | None) -> None:
        """Queue a command, None to wake the thread only. Commands run in the order they were told."""
        self._inbox.put(command)

    def listen(self, *, wait: bool = False) -> None:
        """Run the commands told so far; `wait` for one if there is none."""
        while wait or not self._inbox.empty():
            command, wait = self._inbox.get(), False
            try:
                if command is not None:
                    command()
            except Exception:
                log.exception("a command to the engine failed")

    def answer(self, call: Callable[[], None], *, wait: float = 0.0) -> None:
        """Run something on the event loop soon. Nothing happens if the loop is closed: then nobody is left to tell.

        wait    at most so many seconds, until it and what it woke have run
        """
        loop, done = self._loop, threading.Event()
        if loop is None:
            return

        def run() -> None:
            call()
            loop.call_soon(loop.call_soon, done.set)

        try:
            loop.call_soon_threadsafe(run if wait else call)
        except RuntimeError:
            log.debug("an answer had no reader")
            return
        if wait:
            done.wait(wait)
