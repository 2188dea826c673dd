"""A real server process on a tiny random model, shared by the end-to-end tests.

def test_x(server): server.openai.completions.create(model="quick", prompt="the", max_tokens=4)
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest

TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
WAIT = 90  # seconds for a start on a machine that others use too


class Process:
    """`roadkit serve` in a child process."""

    def __init__(self, model: Path, *arguments: str, log: Path, key: str | None = None):
        self.key = key
        self.log = log
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "default"}
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "roadkit", "serve", str(model), "--name", "tiny", "--port", "0", *arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )
        timer = threading.Timer(WAIT, self.process.kill)
        timer.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        timer.cancel()
        assert " on http" in line, f"no server: {line!r}; {self.log.read_text()[-3000:]}"
        self.url = line.split(" on ")[1].strip().removesuffix("/v1")
        self.http = httpx.Client(base_url=self.url, headers=self._headers(), timeout=60)
        deadline = time.monotonic() + WAIT
        while True:  # bound, but perhaps not serving yet
            try:
                if self.http.get("/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, "never ready"
            time.sleep(0.05)

    def _headers(self) -> dict[str, str]:
        headers = {"X-Roadkit-Request": "1"}
        return headers | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    @functools.cached_property
    def openai(self) -> openai.OpenAI:
        """The official client, without its retries."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0, timeout=60)

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = [
            line for line in self.http.get("/metrics").text.splitlines() if line.startswith((name + " ", name + "{"))
        ]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def settled(self, name: str, value: float, *, seconds: float = 10) -> bool:
        """Whether a metric comes to a value soon."""
        deadline = time.monotonic() + seconds
        while self.metric(name) != value:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def stop(self, number: int = signal.SIGTERM, timeout: float = 60) -> int:
        self.http.close()
        self.openai.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tiny_llama, tiny_tokenizer) -> Path:
    """The tiny Llama with its tokenizer, as a folder that `roadkit serve` loads."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_llama(vocab_size=384, max_position_embeddings=1024).save_pretrained(folder)
    tiny_tokenizer.chat_template = TEMPLATE
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory, tiny_llama, random_adapter):
    """`made(seed)`: the folder of a random adapter for the tiny model; `group_size`, `variant` as in `random_adapter`."""
    model = tiny_llama(vocab_size=384, max_position_embeddings=1024)
    root = tmp_path_factory.mktemp("adapters")

    def make(seed: int, **options) -> Path:
        folder = root / f"{seed}{''.join(map(str, options.values()))}"
        if not folder.exists():
            random_adapter(model, seed, **options).save(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def start(tmp_path_factory, tiny_folder):
    """`start("--adapters", …)`: a server of its own, ended with the session at the latest."""
    running: list[Process] = []

    def run(*arguments: str, key: str | None = None, model: Path | None = None) -> Process:
        log = tmp_path_factory.mktemp("log") / "server.log"
        running.append(Process(model or tiny_folder, *arguments, log=log, key=key))
        return running[-1]

    yield run
    for process in running:
        if process.process.poll() is None:
            process.process.kill()
        process.stop()


@pytest.fixture(scope="session")
def server(start, made, tmp_path_factory) -> Process:
    """Without keys, with the adapters `quick` and `lazy`, and a registry."""
    registry = tmp_path_factory.mktemp("registry")
    return start(
        *(
            "--adapters",
            f"quick={made(1)}",
            "--adapters",
            f"lazy={made(2)}",
            "--adapters",
            f"other={made(9, group_size=8)}",
        ),
        *("--registry", str(registry), "--max-batch", "4", "--max-queue", "64"),
    )


def upload(http: httpx.Client, name: str, folder: Path, **fields: str) -> httpx.Response:
    """POST both files of an adapter."""
    files = {
        "config": (folder / "adapter_config.json").read_bytes(),
        "weights": (folder / "adapter_model.safetensors").read_bytes(),
    }
    return http.post("/v1/adapters", data={"name": name, **fields}, files=files)
