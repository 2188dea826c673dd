"""`Threads`: where the server computes and reads while its event loop goes on.

adapter = await threads.work(lambda: residents.acquire(factors))
entry = await threads.change(lambda: inventory.keep("acme", "formal", config, weights))
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class Threads:
    """Two pools, so that requests never wait behind an upload."""

    def __init__(self) -> None:
        self._workers = ThreadPoolExecutor(2, thread_name_prefix="roadkit-work")
        self._changers = ThreadPoolExecutor(2, thread_name_prefix="roadkit-change")

    async def work(self, call: Callable[[], Result]) -> Result:
        """Run what a request waits for."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, call)

    async def change(self, call: Callable[[], Result]) -> Result:
        """Run an upload, a download or a look at folders, each of which may be slow."""
        return await asyncio.get_running_loop().run_in_executor(self._changers, call)

    def close(self) -> None:
        """Wait for what runs, and take nothing more."""
        self._workers.shutdown(wait=True)
        self._changers.shutdown(wait=True)
