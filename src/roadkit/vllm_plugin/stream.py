"""One request that runs on vLLM's asynchronous engine, as roadkit's chunks.

stream = await engine.submit(Request(prompt="Hello"))
async for chunk in stream:
    print(chunk.text)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from ..engine.request import Chunk, Completion, Fault, FinishReason
from .params import to_chunk

log = logging.getLogger("roadkit.vllm")


class VllmStream:
    """A submitted request: iterate over its chunks, wait for its `result`, or `cancel` it.

    `ended` is called with the stream once, when the request is over.
    """

    def __init__(
        self,
        llm: Any,
        stream_id: str,
        prompt: dict[str, Any],
        parameters: Any,
        lora_request: Any,
        *,
        ended: Callable[[VllmStream], None],
    ):
        self.id, self.lora_request = stream_id, lora_request
        self._llm, self._ended, self._closed = llm, ended, False
        self._chunks: asyncio.Queue[Chunk] = asyncio.Queue()
        self._pieces: list[Chunk] = []
        self._task = asyncio.create_task(self._pump(prompt, parameters))

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        while True:
            chunk = await self._chunks.get()
            yield chunk
            if chunk.completion is not None:
                self._chunks.put_nowait(chunk)  # whoever asks later gets the end again
                return

    async def result(self) -> Completion:
        """Wait for the whole answer."""
        async for chunk in self:
            if chunk.completion is not None:
                return chunk.completion
        raise AssertionError("a stream ended without its completion")

    async def cancel(self) -> None:
        """Stop the request: it ends with finish_reason 'cancelled'. No effect once it has finished."""
        self._task.cancel()  # vLLM's `generate` then aborts its request; a task that has not begun never calls it
        await asyncio.wait([self._task])
        self._end("cancelled")

    async def _pump(self, prompt: dict[str, Any], parameters: Any) -> None:
        try:
            async for output in self._llm.generate(prompt, parameters, self.id, lora_request=self.lora_request):
                chunk = to_chunk(output, self._pieces, parameters)
                self._pieces.append(chunk)
                self._chunks.put_nowait(chunk)
        except Exception as error:  # vLLM refused it, or its engine is gone
            log.warning("request %s failed: %s", self.id, error)
            self._end("error", error=f"{type(error).__name__}: {error}", fault="engine")
        self._end("cancelled")

    def _end(self, reason: FinishReason, *, error: str | None = None, fault: Fault | None = None) -> None:
        """Say how the request ended, unless vLLM has said so, and tell the engine. Later calls do nothing."""
        if self._closed:
            return
        self._closed = True
        self._ended(self)
        if self._pieces and self._pieces[-1].completion is not None:
            return
        text = "".join(piece.text for piece in self._pieces)
        tokens = [token for piece in self._pieces for token in piece.token_ids]
        completion = Completion(text=text, token_ids=tokens, finish_reason=reason, error=error, fault=fault)
        chunk = Chunk("", (), (), completion)
        self._pieces.append(chunk)
        self._chunks.put_nowait(chunk)
