"""`Stream`: a submitted request and the chunks of its answer.

    for chunk in engine.submit(request): ...
    completion = engine.submit(request).result()

Whoever reads drives the engine's steps while no chunk is there.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator

from .request import Chunk, Completion
from .sequence import TokenSequence


class Stream:
    """A submitted request: iterate over its chunks, wait for its `result`, or `cancel` it.

    step, cancel   the engine's: run a step for everything that is running; stop a sequence
    """

    def __init__(self, sequence: TokenSequence, *, step: Callable[[], bool], cancel: Callable[[TokenSequence], None]):
        self._sequence, self._step, self._cancel = sequence, step, cancel
        self._chunks: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
        self._completion: Completion | None = None
        sequence.emit = self._chunks.put

    def __iter__(self) -> Iterator[Chunk]:
        while self._completion is None:
            while self._chunks.empty():
                self._step()
            chunk = self._chunks.get()
            self._completion = chunk.completion
            yield chunk

    def result(self) -> Completion:
        """Wait for the whole answer."""
        for _ in self:
            pass
        assert self._completion is not None, "a stream ended without its completion"
        return self._completion

    def cancel(self) -> None:
        """Stop the request now; its row and pages are free for the next step. No effect once it has finished."""
        self._cancel(self._sequence)
