"""A thousand adapters on a tiny model under load, with uploads, replacements and deletions; every answer is checked.

figures = churn(adapters=1000, count=10_000)
"""

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from bench_load import random_adapter
from serve_client import call, served, upload

from roadkit.engine.engine import Engine
from roadkit.engine.request import Request

PROMPT, TOKENS, CLIENTS = list(range(40, 60)), 8, 24


def churn(*, adapters: int, count: int) -> dict:
    """Each adapter's greedy answer is recognisable: known from the engine beforehand, compared at every request."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = tiny(root / "model")
        for i in range(adapters):
            random_adapter(model, seed=i, group_size=16, size=0.4).save(root / "adapters" / f"a{i}")
        expected = answers(root, adapters)
        arguments = ("--adapters", str(root / "adapters"), "--registry", str(root / "registry"))
        with served(str(root / "model"), *arguments, "--max-batch", "16", "--max-queue", "4096") as (port, pid):
            figures = asyncio.run(drive(port, pid, root, expected, count))
    return {"adapters": adapters, "distinct_answers": len(set(expected)), **figures}


def tiny(folder: Path):
    """A random Llama of two layers with a byte tokenizer, saved for the server."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=258, max_position_embeddings=256, initializer_range=0.1, **sizes)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def answers(root: Path, adapters: int) -> list[str]:
    paths = {f"a{i}": root / "adapters" / f"a{i}" for i in range(adapters)}
    engine = Engine.from_pretrained(str(root / "model"), adapters=paths, max_batch=16)
    asked = [Request(prompt=PROMPT, adapter=name, max_tokens=TOKENS, ignore_eos=True) for name in paths]
    return [done.text for done in engine.generate(asked)]


async def drive(port: int, pid: int, root: Path, expected: list[str], count: int) -> dict:
    wrong, statuses, memory = [], dict[int, int](), []
    numbers, changes, start = iter(range(count)), 0, time.perf_counter()

    async def complete(name: str) -> str | None:
        body = {"model": name, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
        status, answer = await call(port, "POST", "/v1/completions", json.dumps(body).encode())
        statuses[status] = statuses.get(status, 0) + 1
        return answer["choices"][0]["text"] if status == 200 else None

    async def reader() -> None:
        for i in numbers:
            number = i * 7919 % len(expected)  # every adapter in turn, far apart on disk
            if await complete(f"a{number}") != expected[number]:
                wrong.append(f"a{number}")
            if i % 50 == 0:
                memory.append(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6)

    async def changer() -> None:
        nonlocal changes
        while len(memory) * 50 < count - 50:
            name = f"u{changes % 8}"
            for version in (changes % len(expected), (changes + 1) % len(expected)):
                assert await upload(port, name, root / "adapters" / f"a{version}") == 201
                if await complete(name) != expected[version]:
                    wrong.append(name)
            status, _ = await call(port, "DELETE", f"/v1/adapters/{name}")
            if status != 200 or await complete(name) is not None:
                wrong.append(f"deleted {name}")
            changes += 1

    await asyncio.gather(changer(), *(reader() for _ in range(CLIENTS)))
    half = memory[len(memory) // 2 :]
    fifth = max(1, len(half) // 5)
    return {
        "requests": count,
        "uploads_replacements_deletions": 3 * changes,
        "wrong_answers": len(wrong),
        "server_errors": sum(number for status, number in statuses.items() if status >= 500),
        "requests_per_second": count / (time.perf_counter() - start),
        "memory_mb": statistics.median(half),
        "memory_growth_mb_second_half": statistics.median(half[-fifth:]) - statistics.median(half[:fifth]),
    }
