"""Server processes for tests: forked from one that has imported everything, so that each starts in about a second.

server = Process(folder, "--adapters", "quick=…", log=tmp_path / "server.log")
server.openai.completions.create(model="quick", prompt="the", max_tokens=4)
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import openai

WAIT = 90  # seconds for a start on a machine that others use too

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.server.preload"])


def serve(arguments: list[str], log: str) -> None:
    """What `roadkit serve …` does, with its output in a file."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["roadkit", "serve", *arguments]
    from roadkit.cli import main

    main()


class Process:
    """`roadkit serve` in a process of its own, on a free port."""

    def __init__(self, model: Path | str, *arguments: str, log: Path, key: str | None = None):
        self.key, self.log = key, log
        log.touch()
        command = [str(model), "--name", "tiny", "--port", "0", *arguments]
        self.process = context.Process(target=serve, args=(command, str(log)), daemon=True)
        self.process.start()
        self.url = self._address()
        self.http = httpx.Client(base_url=self.url, headers=self._headers(), timeout=60)
        deadline = time.monotonic() + WAIT
        while not self._ready():
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.02)

    def _address(self) -> str:
        deadline = time.monotonic() + WAIT
        while True:
            for line in self.log.read_text().splitlines():
                if line.startswith("serving "):
                    return line.split(" on ")[1].removesuffix("/v1")
            alive = self.process.is_alive() and time.monotonic() < deadline
            assert alive, self.log.read_text()[-3000:]
            time.sleep(0.02)

    def _ready(self) -> bool:
        try:
            return self.http.get("/ready").status_code == 200
        except httpx.TransportError:  # bound, but not serving yet
            return False

    def _headers(self) -> dict[str, str]:
        headers = {"X-Roadkit-Request": "1"}
        return headers | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    @functools.cached_property
    def openai(self) -> openai.OpenAI:
        """The official client, without its retries."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0, timeout=60)

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + " ", name + "{")))

    def settled(self, name: str, value: float, *, seconds: float = 10) -> bool:
        """Whether a metric comes to a value soon."""
        return eventually(lambda: self.metric(name) == value, seconds=seconds)

    def answer(self, model: str, **options) -> str | int:
        """A greedy answer's text, or the status."""
        body = {"model": model, "prompt": "the quick brown", "max_tokens": 12, "temperature": 0} | options
        response = self.http.post("/v1/completions", json=body)
        return response.json()["choices"][0]["text"] if response.status_code == 200 else response.status_code

    def upload(self, name: str, folder: Path, **fields: str) -> httpx.Response:
        """POST both files of an adapter."""
        return self.http.post("/v1/adapters", data={"name": name, **fields}, files=parts(folder))

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 60) -> int | None:
        """End it; returns the exit code."""
        if self.process.is_alive():
            assert self.process.pid is not None
            with suppress(ProcessLookupError):  # killed a moment ago, and not yet noticed
                os.kill(self.process.pid, number)
        self.process.join(timeout)
        self.http.close()
        self.openai.close()
        return self.process.exitcode


def parts(folder: Path) -> dict[str, bytes]:
    """The multipart files of an adapter's folder."""
    return {
        "config": (folder / "adapter_config.json").read_bytes(),
        "weights": (folder / "adapter_model.safetensors").read_bytes(),
    }


def eventually(condition, *, seconds: float = 10) -> bool:
    """Whether a condition comes true soon."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
