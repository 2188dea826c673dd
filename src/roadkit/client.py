"""A small client for the terminal: conversations with one or two models at once.

talk = Talk(Client("http://127.0.0.1:8000/v1"), "formal")
for piece in talk.say("Hello"): ...          # talk.answer grows
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

import httpx

from .errors import RequestError


class Client:
    """One server and key. Raises `RequestError` for what it refuses, with its own words."""

    def __init__(self, url: str, key: str = ""):
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(headers=headers, timeout=httpx.Timeout(10, read=600))

    def close(self) -> None:
        self._http.close()

    def models(self) -> list[str]:
        """The base model first, then the adapters."""
        try:
            answer = self._http.get(f"{self.url}/models")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RequestError(f"{self.url}: {error}") from error
        self._check(answer)
        return [model["id"] for model in answer.json()["data"]]

    def stream(self, body: dict) -> Generator[str]:
        """The pieces of a chat answer."""
        try:
            with self._http.stream("POST", f"{self.url}/chat/completions", json={**body, "stream": True}) as answer:
                if answer.status_code >= 400:
                    answer.read()
                self._check(answer)
                for line in answer.iter_lines():
                    data = line.removeprefix("data: ")
                    if data == line or data == "[DONE]":
                        continue
                    event = json.loads(data)
                    if "error" in event:
                        raise RequestError(event["error"]["message"])
                    for choice in event["choices"]:
                        yield choice["delta"].get("content") or ""
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RequestError(f"{self.url}: {error}") from error

    @staticmethod
    def _check(answer: httpx.Response) -> None:
        if answer.status_code < 400:
            return
        try:
            message = answer.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = answer.text[:200]
        raise RequestError(f"{answer.status_code}: {message}")


def interleaved(streams: Sequence[Generator[str]]) -> Iterator[str]:
    """Run several streams at once, and yield whatever comes from any. The first failure is raised at the end.

    A reader that stops ends the streams, each at its next piece.
    """
    pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    failures: list[RequestError] = []
    stopped = threading.Event()

    def run(stream: Generator[str]) -> None:
        try:
            for piece in stream:
                if stopped.is_set():
                    stream.close()
                    break
                pieces.put(piece)
        except RequestError as error:
            failures.append(error)
        finally:
            pieces.put(None)

    for stream in streams:
        threading.Thread(target=run, args=(stream,), daemon=True).start()
    left = len(streams)
    try:
        while left:
            piece = pieces.get()
            if piece is None:
                left -= 1
            else:
                yield piece
    finally:
        stopped.set()
    if failures:
        raise failures[0]


@dataclass
class Talk:
    """A conversation with one model."""

    client: Client
    model: str
    system: str = ""
    max_tokens: int = 512
    temperature: float = 0.0
    messages: list[dict[str, str]] = field(default_factory=list)
    answer: str = ""
    _turn: int = 0

    def say(self, text: str) -> Generator[str]:
        """Add a message and read the answer, which joins the conversation when it is complete.

        An answer that is still read when the next message is said ends there, and joins nothing.
        """
        head = [{"role": "system", "content": self.system}] if self.system else []
        asked = {"role": "user", "content": text}
        self.answer = ""
        self._turn = turn = self._turn + 1
        body = {
            "model": self.model,
            "messages": [*head, *self.messages, asked],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }
        for piece in self.client.stream(body):
            if self._turn != turn:
                return
            self.answer += piece
            yield piece
        self.messages += [asked, {"role": "assistant", "content": self.answer}]
