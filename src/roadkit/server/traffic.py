"""`Traffic`: the requests that a server is answering, and whether it takes more.

with traffic.request(): ...       # of the guard, around every HTTP request
traffic.drain()                   # new requests get 503 from here on
traffic.cut()                     # and what still runs is cancelled
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Cancellable(Protocol):
    """Work in a backend."""

    def cancel(self, why: str) -> None:
        """End what still runs."""
        ...


class Traffic:
    """Used on the event loop only. `running` is what `cut` cancels; whoever begins work enters it there and takes it out."""

    def __init__(self) -> None:
        self.in_flight, self.draining = 0, False
        self.running: set[Cancellable] = set()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count one HTTP request."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def drain(self) -> None:
        """Take nothing new; what runs may finish until `cut`."""
        self.draining = True

    def cut(self) -> None:
        """End what still runs."""
        for work in list(self.running):
            work.cancel("the server is shutting down")
