"""The server beside the engine called directly, and 64 adapters beside one under open-loop load."""

import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_load import random_adapter
from bench_mixed import over, prompts
from harness import summary

from roadkit import models
from roadkit.engine.engine import Engine
from roadkit.engine.request import Request

BATCH, TOKENS, ADAPTERS = 16, 32, 64


def run(rounds: int = 3, seconds: float = 20.0, load: float = 0.6) -> dict:
    """Ratios are medians over rounds, both sides in each. `load`: arrivals as a share of the measured throughput."""
    base = models.load_causal("smollm2")
    with tempfile.TemporaryDirectory() as folder:
        for i in range(ADAPTERS):
            random_adapter(base, seed=i).save(Path(folder) / f"a{i}")
        paths = {f"a{i}": str(Path(folder) / f"a{i}") for i in range(ADAPTERS)}
        engine = Engine(base, models.load_tokenizer("smollm2"), adapters=paths, max_batch=BATCH)
        with served(folder) as port:
            return {**idle(engine, port), **throughput(engine, port, rounds), **popularity(port, rounds, seconds, load)}


@contextlib.contextmanager
def served(folder: str):
    """`roadkit serve` in a process of its own; yields its port."""
    arguments = ("serve", "smollm2", "--adapters", folder, "--port", "0", "--max-batch", str(BATCH))
    server = subprocess.Popen([sys.executable, "-m", "roadkit", *arguments], stdout=subprocess.PIPE, text=True)
    try:
        port = int(server.stdout.readline().rsplit(":", 1)[1].split("/")[0])
        yield port
    finally:
        server.terminate()
        server.wait(60)


async def ask(port: int, prompt: str, model: str, tokens: int) -> tuple[float, float, int]:
    """One streamed request over a connection of its own: seconds to the first token, to the end, and tokens."""
    fields = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    data = json.dumps({**fields, "stream": True, "stream_options": {"include_usage": True}}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    start, first, counted = time.perf_counter(), 0.0, 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    async for line in reader:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            assert "error" not in event, event
            if not first:
                first = time.perf_counter() - start
            if event.get("usage"):
                counted = event["usage"]["completion_tokens"]
    writer.close()
    assert counted == tokens, f"{counted} tokens of {tokens}"
    return first, time.perf_counter() - start, counted


def idle(engine: Engine, port: int, count: int = 20) -> dict:
    """First token of an idle server, beside the engine's own; a different prompt each time, the same for both."""
    ours, direct = [], []
    for i, prompt in enumerate(prompts(count + 2)):
        start = time.perf_counter()
        engine.generate([Request(prompt=prompt, adapter="a0", max_tokens=1, ignore_eos=True)])
        inside = time.perf_counter() - start
        first, _, _ = asyncio.run(ask(port, prompt, "a0", 1))
        if i >= 2:
            ours.append(1000 * first)
            direct.append(1000 * inside)
    added = statistics.median(a - b for a, b in zip(ours, direct, strict=True))
    return {"first_token_ms": {"server": summary(ours), "engine": summary(direct)}, "http_adds_ms": round(added, 2)}


def throughput(engine: Engine, port: int, rounds: int) -> dict:
    """Tokens per second of the same requests, all sent at once, one adapter each."""
    rates: dict[str, list[float]] = {"engine": [], "server": []}
    asked = [(prompt, f"a{i % ADAPTERS}") for i, prompt in enumerate(prompts(2 * BATCH))]

    async def everything() -> None:
        await asyncio.gather(*(ask(port, prompt, name, TOKENS) for prompt, name in asked))

    for i in range(rounds + 1):
        start = time.perf_counter()
        engine.generate([Request(prompt=p, adapter=name, max_tokens=TOKENS, ignore_eos=True) for p, name in asked])
        middle = time.perf_counter()
        asyncio.run(everything())
        end = time.perf_counter()
        if i:
            rates["engine"].append(len(asked) * TOKENS / (middle - start))
            rates["server"].append(len(asked) * TOKENS / (end - middle))
    return {
        "tokens_per_second": {name: summary(values) for name, values in rates.items()},
        "server_over_engine": over(rates, "server", "engine"),
    }


def popularity(port: int, rounds: int, seconds: float, load: float) -> dict:
    """The same arrivals with one adapter and with 64 of zipf popularity: throughput and the slowest percent."""
    full = asyncio.run(capacity(port))
    rate = load * full / TOKENS
    rows: dict[str, dict[str, list[float]]] = {}
    for i in range(rounds):
        for name, count in (("one_adapter", 1), ("many_adapters", ADAPTERS)):
            figures = asyncio.run(open_loop(port, count, rate, seconds, seed=i))
            for key, value in figures.items():
                rows.setdefault(key, {}).setdefault(name, []).append(value)
    return {
        "arrivals_per_second": round(rate, 2),
        **{key: {name: summary(values) for name, values in sides.items()} for key, sides in rows.items()},
        "many_over_one_throughput": over(rows["open_loop_tokens_per_second"], "many_adapters", "one_adapter"),
        "many_over_one_p99_per_token": over(rows["p99_ms_per_token"], "many_adapters", "one_adapter"),
    }


async def capacity(port: int) -> float:
    """Tokens per second of a full batch."""
    start = time.perf_counter()
    await asyncio.gather(*(ask(port, prompt, "a0", TOKENS) for prompt in prompts(BATCH)))
    return BATCH * TOKENS / (time.perf_counter() - start)


async def open_loop(port: int, adapters: int, rate: float, seconds: float, seed: int) -> dict[str, float]:
    """Poisson arrivals that do not wait for answers; adapter k with probability ∝ 1/k."""
    draw, start, tasks = random.Random(seed), time.perf_counter(), []
    names = [f"a{i}" for i in range(adapters)]
    weights, texts = [1 / (i + 1) for i in range(adapters)], prompts(64)
    due = 0.0
    while due < seconds:
        await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
        text = f"{texts[len(tasks) % 64]} {seed} {len(tasks)}"
        tasks.append(asyncio.ensure_future(ask(port, text, draw.choices(names, weights)[0], TOKENS)))
        due += draw.expovariate(rate)
    answers = await asyncio.gather(*tasks)
    per_token = sorted(1000 * (whole - first) / (count - 1) for first, whole, count in answers)
    return {
        "open_loop_tokens_per_second": sum(count for *_, count in answers) / (time.perf_counter() - start),
        "p99_ms_per_token": per_token[int(0.99 * (len(per_token) - 1))],
        "median_first_token_ms": statistics.median(1000 * first for first, *_ in answers),
    }
