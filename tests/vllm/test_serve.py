"""`vllm serve` as a user starts it, with an unchanged openai client; and vLLM as before if RoAd is off."""

import json
import os
import shutil
import sys
import urllib.error
import urllib.request

import pytest

from roadkit import expression
from tests.vllm.tiny import expected_tokens, free_port, serving, started

PROMPT = [10, 20, 30, 40, 50, 60]


@pytest.fixture(scope="module")
def server(tiny, make_adapter, tmp_path_factory):
    base, root = tiny("llama").model, tmp_path_factory.mktemp("served")
    found = {}
    for name, seed in [("formal", 91), ("german", 92)]:
        made = make_adapter(base, "road_1", 64, seed=seed)
        shutil.copytree(made.path, root / name)
        found[name] = made.adapter
    port = free_port()
    command = [
        *[sys.executable, "-m", "roadkit.vllm_plugin", "serve", tiny("llama").path, "--port", str(port)],
        *["--served-model-name", "base", "--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "8"],
        *["--max-num-batched-tokens", "256", "--enforce-eager", "--enable-lora", "--max-loras", "4"],
        *["--lora-modules", f"german={root / 'german'}", "--additional-config", '{"roadkit": {"group_sizes": [64]}}'],
    ]
    # the plugin is found through its entry point, as at a user's
    environment = {**os.environ, "ROADKIT_VLLM_ADAPTERS": str(root), "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    with serving(command, root / "log.txt", f"http://127.0.0.1:{port}/health", environment):
        yield f"http://127.0.0.1:{port}/v1", base, found


@pytest.mark.parametrize("model", ["base", "german", "formal", "formal*0.7 + german", "german - formal"])
def test_model_names_and_expressions(server, model):
    import openai

    address, base, found = server
    client = openai.OpenAI(base_url=address, api_key="none")
    answer = client.completions.create(
        model=model,
        prompt=PROMPT,
        max_tokens=8,
        temperature=0,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    adapter = None if model == "base" else expression.compose(model, found)
    ids = answer.choices[0].model_dump()["token_ids"]  # vLLM's own field
    assert ids == expected_tokens(base, adapter, PROMPT, 8)


def test_unknown_names_are_not_found(server):
    import openai

    client = openai.OpenAI(base_url=server[0], api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="formal + nobody", prompt=PROMPT, max_tokens=1)


def test_bad_adapter_is_refused_and_the_server_lives(server, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "ROAD"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors")
    body = json.dumps({"lora_name": "bad", "lora_path": str(tmp_path)}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server[0] + "/load_lora_adapter", data=body, headers=headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert "truncated or corrupt" in caught.value.read().decode()
    test_model_names_and_expressions(server, "german")


def test_without_the_option_vllm_is_as_it_was(tiny):
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

    with started(tiny("llama").path, additional_config={}) as llm:
        runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
        assert type(runner.lora_manager) is LRUCacheWorkerLoRAManager
        assert not any("roadkit" in name for name, _ in runner.model.named_modules())
