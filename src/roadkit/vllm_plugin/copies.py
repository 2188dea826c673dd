"""Copies of adapters' files, so that a folder may change after its adapter was registered: one folder a content.

copies = Copies(None)                     # in this machine's temporary folder
source = copies.make("adapters/formal")   # read, validated and copied; its path and content hash
copies.keep_only({source.path})
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

from .. import store
from ..adapter import Adapter
from ..files import replaced_directory
from .loading import Source


class Copies:
    """A folder of copies inside `parent` (by default this machine's temporary folder); `close` deletes it."""

    def __init__(self, parent: str | os.PathLike | None):
        self._temporary = tempfile.TemporaryDirectory(prefix="roadkit-vllm-", dir=parent)
        self.folder = Path(self._temporary.name)

    def make(self, source: Adapter | str | os.PathLike) -> Source:
        """Read an adapter once, validate it, and keep its two files under the content's name. Raises `AdapterError`."""
        config, weights = store.serialize(source) if isinstance(source, Adapter) else store.read(source)
        adapter = store.parse(config, weights, origin=str(source))
        target = self.folder / adapter.content_hash[:32]
        if not target.is_dir():
            with replaced_directory(target) as folder:
                (folder / store.CONFIG).write_bytes(config)
                (folder / store.WEIGHTS).write_bytes(weights)
        return Source(str(target), adapter.content_hash)

    def keep_only(self, paths: Collection[str]) -> None:
        """Delete all other copies."""
        for entry in self.folder.iterdir():
            if str(entry) not in paths and not entry.name.startswith("."):  # a dot: being written
                shutil.rmtree(entry, ignore_errors=True)

    def close(self) -> None:
        """Delete all copies and their folder."""
        self._temporary.cleanup()
