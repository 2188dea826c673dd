"""The server beside the engine called directly, 64 adapters beside one, cold adapters, and a thousand under load."""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from bench_load import random_adapter
from bench_mixed import prompts
from harness import over, summary
from serve_churn import churn
from serve_client import ask, open_loop, served

from roadkit import models
from roadkit.engine.engine import Engine
from roadkit.engine.request import Request

BATCH, TOKENS, ADAPTERS, COLD = 16, 32, 64, 24


def run(rounds: int = 3, seconds: float = 20.0, load: float = 0.6, adapters: int = 1000, count: int = 10_000) -> dict:
    """Ratios are medians over rounds, both sides in each. `load`: arrivals as a share of the measured throughput."""
    base = models.load_causal("smollm2")
    with tempfile.TemporaryDirectory() as folder:
        names = [*(f"a{i}" for i in range(ADAPTERS)), *(f"c{i}" for i in range(2 * COLD * rounds))]
        for i, name in enumerate(names):
            random_adapter(base, seed=i).save(Path(folder) / name)
        engine = Engine(
            base,
            models.load_tokenizer("smollm2"),
            adapters={name: str(Path(folder) / name) for name in names[:ADAPTERS]},
            max_batch=BATCH,
        )
        resident = str(len(names))  # cold is what nobody asked for yet
        with served(*("smollm2", "--adapters", folder, "--max-batch", str(BATCH), "--max-resident", resident)) as (
            port,
            _,
        ):
            figures = {
                **idle(engine, port),
                **throughput(engine, port, rounds),
                **popularity(port, rounds, seconds, load),
                **cold(port, rounds),
            }
    return {**figures, "churn": churn(adapters=adapters, count=count)}


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
    rate = load * asyncio.run(capacity(port)) / TOKENS
    rows: dict[str, dict[str, list[float]]] = {}
    for i in range(rounds):
        for name, count in (("one_adapter", 1), ("many_adapters", ADAPTERS)):
            names = [f"a{k}" for k in range(count)]
            figures = asyncio.run(open_loop(port, names, prompts(64), rate, seconds, TOKENS, seed=i))
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


def cold(port: int, rounds: int) -> dict:
    """An adapter's first request beside its second, alone and beside running requests, whose own pace is compared."""
    alone: dict[str, list[float]] = {"cold": [], "warm": []}
    beside: dict[str, list[float]] = {"cold": [], "warm": []}
    asyncio.run(ask(port, prompts(1)[0], "a0", 1))
    for i in range(rounds):
        first = 2 * COLD * i
        for k in range(first, first + COLD):
            for kind in alone:
                alone[kind].append(1000 * asyncio.run(ask(port, f"{prompts(1)[0]} {k} {kind}", f"c{k}", 1))[0])
        newcomers = [f"c{k}" for k in range(first + COLD, first + 2 * COLD)]
        for kind in beside:  # the same arrivals twice: they are cold the first time
            beside[kind].append(asyncio.run(interrupted(port, newcomers, f"{kind} {i}")))
    added = statistics.median(a - b for a, b in zip(alone["cold"], alone["warm"], strict=True))
    return {
        "cold_adapter_first_token_ms": {kind: summary(values) for kind, values in alone.items()},
        "cold_adds_ms": round(added, 2),
        "others_ms_per_token": {kind: summary(values) for kind, values in beside.items()},
        "others_cold_over_warm": over(beside, "cold", "warm"),
    }


async def interrupted(port: int, newcomers: list[str], salt: str) -> float:
    """Milliseconds a token of four running requests, while newcomers of one token each arrive one after the other."""
    running = [asyncio.ensure_future(ask(port, f"{text} {salt}", f"a{i}", 160)) for i, text in enumerate(prompts(4))]
    await asyncio.sleep(0.5)
    for name in newcomers:
        await ask(port, f"{prompts(1)[0]} {salt} {name}", name, 1)
        await asyncio.sleep(0.05)
    done = await asyncio.gather(*running)
    return statistics.median(1000 * (whole - first) / (count - 1) for first, whole, count in done)
