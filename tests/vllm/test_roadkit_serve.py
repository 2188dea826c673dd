"""`roadkit serve --engine vllm` over two ranks, with an unchanged openai client: one server for the whole file."""

import json
import shutil
import sys
import threading
from pathlib import Path

import httpx
import openai
import pytest

from roadkit import expression
from roadkit.server.api.vocabulary import Vocabulary
from tests.vllm.tiny import expected_tokens, free_port, serving

PROMPT = [10, 20, 30, 40, 50, 60]


class Served:
    """The server's address and clients, the model it serves, and its adapters by name."""

    def __init__(self, url, model, tokenizer):
        self.model, self.adapters = model, {}
        self.vocabulary = Vocabulary(tokenizer)
        self.http = httpx.Client(base_url=url, headers={"X-Roadkit-Request": "1"}, timeout=None)
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=None)

    def expected(self, model: str, count: int) -> list[str]:
        """The tokens that transformers and roadkit give, spelt as the server does."""
        adapter = None if model == "base" else expression.compose(model, self.adapters)
        return [self.vocabulary.text(token) for token in expected_tokens(self.model, adapter, PROMPT, count)]

    def complete(self, model: str, count: int, **options):
        return self.openai.completions.create(
            model=model,
            prompt=PROMPT,
            max_tokens=count,
            temperature=0,
            logprobs=0,
            extra_body={"ignore_eos": True},
            **options,
        )

    def tokens(self, model: str, count: int = 8) -> list[str]:
        return self.complete(model, count).choices[0].logprobs.tokens

    def upload(self, name: str, path: str | Path) -> httpx.Response:
        files = {
            field: (Path(path) / file).read_bytes()
            for field, file in (("config", "adapter_config.json"), ("weights", "adapter_model.safetensors"))
        }
        return self.http.post("/v1/adapters", data={"name": name}, files=files)

    def metric(self, name: str, label: str = "") -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and label in line)


@pytest.fixture(scope="module")
def served(tiny, make_adapter, tmp_path_factory):
    base, root, port = tiny("llama").model, tmp_path_factory.mktemp("server"), free_port()
    made = {name: make_adapter(base, "road_1", 64, seed=seed) for name, seed in [("formal", 41), ("german", 42)]}
    for name, each in made.items():
        shutil.copytree(each.path, root / "adapters" / name)
    command = [
        *[sys.executable, "-m", "roadkit", "serve", tiny("llama").path, "--name", "base", "--port", str(port)],
        *["--engine", "vllm", "--tensor-parallel-size", "2", "--distributed-executor-backend", "mp"],
        *["--adapters", str(root / "adapters"), "--registry", str(root / "registry"), "--weights", "float32"],
        *["--max-batch", "8", "--max-context", "256", "--cache-gib", "0.25", "--group-size", "64", "--group-size", "2"],
        *["--engine-options", json.dumps({"enforce_eager": True, "max_num_batched_tokens": 256})],
    ]
    from transformers import AutoTokenizer

    url = f"http://127.0.0.1:{port}"
    with serving(command, root / "log.txt", f"{url}/ready"):
        served = Served(url, base, AutoTokenizer.from_pretrained(tiny("llama").path))
        served.adapters = {name: each.adapter for name, each in made.items()}
        yield served
        served.http.close()
        served.openai.close()


@pytest.mark.parametrize("model", ["base", "formal", "formal*0.7 + german", "german - formal"])
def test_base_adapters_and_expressions(served, model):
    assert served.tokens(model) == served.expected(model, 8)


def test_stream_gives_the_same_pieces(served):
    whole = served.complete("formal*0.5", 12).choices[0]
    chunks = [chunk.choices[0] for chunk in served.complete("formal*0.5", 12, stream=True) if chunk.choices]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.tokens] == whole.logprobs.tokens
    assert len(chunks) > 3 and chunks[-1].finish_reason == whole.finish_reason == "length"


def test_chat_names_its_usage(served):
    answer = served.openai.chat.completions.create(
        model="german", messages=[{"role": "user", "content": "hello"}], max_tokens=4, temperature=0
    )
    assert answer.usage.prompt_tokens == len("user: hello\n") and answer.usage.completion_tokens <= 4


def test_upload_and_new_version_while_answers_run(served, tiny, make_adapter):
    """Under a stream of requests an adapter appears, changes and goes; nobody's answer changes with it."""
    versions = [make_adapter(tiny("llama").model, "road_2", 2, seed=seed) for seed in (43, 44)]
    expected, wrong, stop = served.expected("formal", 24), [], threading.Event()

    def ask():
        while not stop.is_set():
            tokens = served.tokens("formal", 24)
            if tokens != expected:
                wrong.append(tokens)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for version in versions:
            assert served.upload("moving", version.path).status_code == 201
            served.adapters["moving"] = version.adapter
            assert served.tokens("moving") == served.expected("moving", 8)
            assert served.tokens("moving*2") == served.expected("moving*2", 8)
        assert served.http.delete("/v1/adapters/moving").status_code == 200
        with pytest.raises(openai.NotFoundError):
            served.tokens("moving")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong


def test_bad_uploads_are_refused_and_the_engine_lives(served, tiny, make_adapter, tmp_path):
    strange = make_adapter(tiny("llama").model, "road_1", 32, seed=45)
    refused = served.upload("strange", strange.path)
    assert refused.status_code == 400 and "group_size is 32, the engine was told of [64, 2]" in refused.text
    shutil.copytree(strange.path, tmp_path / "bad")
    (tmp_path / "bad" / "adapter_model.safetensors").write_bytes(b"no tensors")
    assert served.upload("bad", tmp_path / "bad").status_code == 400
    assert served.tokens("german") == served.expected("german", 8)


def test_client_that_leaves_frees_its_row(served):
    stream = served.complete("german", 200, stream=True)
    next(iter(stream))
    stream.close()
    while served.metric("roadkit_requests_running"):  # not released, it would end with its 200 tokens
        pass
    assert served.metric("roadkit_completions_total", 'reason="cancelled"') == 1
    assert served.tokens("german") == served.expected("german", 8)


@pytest.mark.parametrize("route", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"])
def test_vllms_own_routes_are_not_there(served, route):
    assert served.http.post(route, json={"lora_name": "x", "lora_path": "/x"}).status_code == 404
