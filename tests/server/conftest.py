"""A server process on a tiny random model shared by the end-to-end tests, and servers inside the test's own loop.

def test_x(server): server.openai.completions.create(model="quick", prompt="the", max_tokens=4)
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.server.process import Process

TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def talking(tokenizer):
    """A copy that has a chat template; the session's own stays without."""
    copied = copy.deepcopy(tokenizer)
    copied.chat_template = TEMPLATE
    return copied


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tiny_llama, tiny_tokenizer) -> Path:
    """The tiny Llama with its tokenizer, as a folder that `roadkit serve` loads."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_llama(vocab_size=384, max_position_embeddings=1024).save_pretrained(folder)
    talking(tiny_tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory, tiny_llama, random_adapter):
    """`made(seed)`: the folder of a random adapter for the tiny model; options as in `random_adapter`."""
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

    def run(*arguments: str, key: str | None = None, model: Path | str | None = None) -> Process:
        log = tmp_path_factory.mktemp("log") / "server.log"
        running.append(Process(model or tiny_folder, *arguments, log=log, key=key))
        return running[-1]

    yield run
    for process in running:
        process.stop()


@pytest.fixture(scope="session")
def server(start, made, tmp_path_factory) -> Process:
    """Without keys, with `quick`, `lazy` and `other` (which does not compose with them), and a registry."""
    folders = {"quick": made(1), "lazy": made(2), "other": made(9, group_size=8)}
    adapters = [argument for name, folder in folders.items() for argument in ("--adapters", f"{name}={folder}")]
    registry = tmp_path_factory.mktemp("registry")
    return start(*adapters, "--registry", str(registry), "--max-batch", "4", "--max-queue", "64")


@pytest.fixture
def local(tiny_llama, tiny_tokenizer):
    """`async with local(keys=[…]) as (service, http)`: a server in the test's own event loop, without a socket."""
    from roadkit.engine.engine import Engine
    from roadkit.server.access.keys import Key, Keyring
    from roadkit.server.app import build
    from roadkit.server.backends.embedded import EmbeddedBackend
    from roadkit.server.settings import ServerSettings

    @asynccontextmanager
    async def run(
        *,
        keys: Sequence[Key] = (),
        keyring: Keyring | None = None,
        adapters: Sequence[str] = (),
        max_batch: int = 4,
        max_queue: int = 64,
        **settings,
    ) -> AsyncIterator:
        model = tiny_llama(vocab_size=384, max_position_embeddings=1024)
        engine = Engine(model, talking(tiny_tokenizer), max_batch=max_batch)
        backend = EmbeddedBackend(engine, max_queue=max_queue, max_queue_per_tenant=max_queue // 2)
        app = build(
            ServerSettings(model="tiny", **settings), keyring or Keyring(tuple(keys)), backend, adapters=adapters
        )
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            headers = {"X-Roadkit-Request": "1"}
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as http:
                yield app.state.service, http

    return run
