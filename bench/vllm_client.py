"""Servers with and without RoAd, asked by `vllm bench serve`: `python bench/bench_vllm.py --client`.

Both servers live at once; the client asks one after the other in every round, with 8 requests at a time: the base of the
plain server, the base and 8 adapters in turn of the one with RoAd. Ratios are taken within a round.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from vllm_worker import write_adapters

CONCURRENT, REQUESTS, GROUP_SIZE = 8, 32, 64
VLLM = [sys.executable, "-m", "roadkit.vllm_plugin"]  # vLLM's command, see there
SIDES = {"plain8": ("plain", False), "base_on_road8": ("road", False), "road8": ("road", True)}


def measure_servers(
    *, model: str = "smollm2", rounds: int = 5, tokens: int = 64, dtype: str = "float32", eager: bool = False
) -> dict:
    """Output tokens per second and milliseconds to the first token of each side, and ratios within rounds."""
    from roadkit.models import resolve

    path = resolve(model)
    with tempfile.TemporaryDirectory(prefix="roadkit-bench-") as folder, contextlib.ExitStack() as stack:
        write_adapters(path, Path(folder), GROUP_SIZE)
        ports = {
            name: stack.enter_context(_server(path, folder, road=name == "road", dtype=dtype, eager=eager))
            for name in ("plain", "road")
        }
        for name, adapters in SIDES.values():
            _ask(path, ports[name], folder, tokens, adapters=adapters)
        measured = []
        for i in range(rounds):
            measured.append(
                {side: _ask(path, ports[name], folder, tokens, adapters=more) for side, (name, more) in SIDES.items()}
            )
            latest = {side: round(found[0], 1) for side, found in measured[-1].items()}
            print(f"round {i + 1} of {rounds}: {latest}", file=sys.stderr, flush=True)
    result: dict = {"bench": "vllm bench serve", "model": model, "tokens": tokens, "rounds": rounds, "eager": eager}
    for side in SIDES:
        speeds, first = zip(*(found[side] for found in measured), strict=True)
        result[side] = {"tok_s": statistics.median(speeds), "min": min(speeds), "max": max(speeds)}
        result[side]["first_token_ms"] = statistics.median(first)
    for side in ("road8", "base_on_road8"):
        ratios = [found[side][0] / found["plain8"][0] for found in measured]
        result[f"{side}_over_plain"] = round(statistics.median(ratios), 3)
        result[f"{side}_over_plain_spread"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return result


@contextlib.contextmanager
def _server(model: str, folder: str, *, road: bool, dtype: str, eager: bool) -> Iterator[int]:
    """`vllm serve` in a process of its own; yields its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*VLLM, "serve", model, "--served-model-name", "base", "--port", str(port), "--dtype", dtype]
    command += ["--max-model-len", "512", "--max-num-seqs", "32", *(["--enforce-eager"] if eager else [])]
    if road:
        command += ["--enable-lora", "--max-loras", str(CONCURRENT)]
        command += ["--additional-config", json.dumps({"roadkit": {"group_sizes": [GROUP_SIZE]}})]
        command += ["--lora-modules", *(f"road{i}={folder}/road{i}" for i in range(CONCURRENT))]
    defaults = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    process = subprocess.Popen(command, env={**defaults, **os.environ}, stdout=sys.stderr)
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with exit status {process.returncode}; its messages are above")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.5)
        yield port
    finally:
        process.terminate()
        process.wait()


def _ask(model: str, port: int, folder: str, tokens: int, *, adapters: bool) -> tuple[float, float]:
    """One run of the client → output tokens per second, median milliseconds to the first token."""
    command = [*VLLM, "bench", "serve", "--backend", "openai", "--base-url", f"http://127.0.0.1:{port}"]
    command += ["--model", "base", "--tokenizer", model, "--dataset-name", "random", "--random-input-len", "32"]
    command += ["--random-output-len", str(tokens), "--num-prompts", str(REQUESTS), "--ignore-eos", "--disable-tqdm"]
    command += ["--max-concurrency", str(CONCURRENT), "--temperature", "0", "--save-result", "--result-dir", folder]
    command += ["--result-filename", "client.json"]
    if adapters:
        command += ["--lora-modules", *(f"road{i}" for i in range(CONCURRENT)), "--lora-assignment", "round-robin"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = json.loads((Path(folder) / "client.json").read_text())
    if found["completed"] != REQUESTS:
        raise RuntimeError(f"{found['completed']} of {REQUESTS} requests were answered")
    return found["output_throughput"], found["median_ttft_ms"]
