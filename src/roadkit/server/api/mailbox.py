"""`Mailbox`: chunks of several jobs on their way to one response.

kept = mailbox.put(0, chunk)                         # on the event loop; False if the reader is too far behind
async for index, chunk in mailbox.read(count): ...   # until so many jobs have ended
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from ...engine.request import Chunk


class Mailbox:
    """Filled on the event loop, read by one task. It holds at most `limit` chunks, beside each job's last one."""

    def __init__(self, limit: int):
        self._chunks: deque[tuple[int, Chunk]] = deque()
        self._limit = limit
        self._wake: asyncio.Future[None] | None = None
        self._overflowed = False

    def put(self, index: int, chunk: Chunk) -> bool:
        """Add a chunk of job `index`. False if the reader is too far behind: then only last chunks are kept."""
        if chunk.completion is None:
            self._overflowed = self._overflowed or len(self._chunks) >= self._limit
            if self._overflowed:
                return False
        self._chunks.append((index, chunk))
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
        return True

    async def read(self, count: int) -> AsyncIterator[tuple[int, Chunk]]:
        """Chunks in their order, until `count` jobs have ended."""
        while count:
            while not self._chunks:
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
                self._wake = None
            index, chunk = self._chunks.popleft()
            count -= chunk.completion is not None
            yield index, chunk
