"""Adapters and a server around a backend that only remembers what it was told.

service = new_service(registry=tmp_path)
entry = service.inventory.keep("local", "a", *CONTENTS[0])
"""

from typing import Any, cast

import torch

from roadkit import store
from roadkit.adapter import Adapter
from roadkit.server.access.keys import Keyring
from roadkit.server.service import Service
from roadkit.server.settings import ServerSettings


def files(number: int, *, alpha: float = 1.0) -> tuple[bytes, bytes]:
    """The two files of the adapter that a number stands for, scaled by `alpha`."""
    parameters = {"layer": (torch.full((4,), number / 10), torch.full((4,), alpha))}
    return store.serialize(Adapter.from_parameters(parameters, variant="road_1", group_size=2))


CONTENTS = [files(number) for number in range(1, 5)]


class Memory:
    """A backend that remembers what it was told."""

    abilities = frozenset()

    def __init__(self):
        self.loaded = {}

    def start(self):
        pass

    def close(self):
        pass

    def check(self, adapter):
        pass

    def load(self, name, adapter):
        assert name not in self.loaded
        self.loaded[name] = adapter

    def unload(self, name):
        del self.loaded[name]


def new_service(**settings) -> Service:
    """A server without routes."""
    return Service(ServerSettings(model="base", **settings), Keyring(), cast(Any, Memory()))
