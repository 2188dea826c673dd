"""`EventStream`: an answer as server-sent events. If the client goes away, the answer ends within a step.

return EventStream(generation, events, request)       # events: an async iterator of JSON objects
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .request_jobs import Answering, watched

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "Content-Type": "text/event-stream; charset=utf-8"}

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # json.dumps would make one a token


class EventStream(Response):
    """`data: {…}` for every object, `data: [DONE]` at the end."""

    def __init__(self, answering: Answering, events: AsyncIterator[dict[str, Any]], request: Request):
        super().__init__(headers=_HEADERS)
        if "content-length" in self.headers:
            del self.headers["content-length"]
        self._answering, self._events, self._request = answering, events, request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with watched(self._request, self._answering):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in self._events:
                data = f"data: {_encode(event)}\n\n".encode()
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})
