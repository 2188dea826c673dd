"""A load client for `roadkit serve`: plain sockets, so that it costs little beside what it measures.

first, whole, tokens = await ask(port, "Hello", "formal*0.5", 32)      # seconds to the first token, to the last
"""

import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def served(*arguments: str) -> Iterator[tuple[int, int]]:
    """`roadkit serve` in a process of its own, until the block ends; yields its port and process id."""
    command = [sys.executable, "-m", "roadkit", "serve", *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.startswith("serving"), f"the server did not start: {' '.join(command)}"
            yield int(line.rsplit(":", 1)[1].split("/")[0]), server.pid
        finally:
            server.terminate()
            server.wait(60)


def head(method: str, path: str, length: int, kind: str = "application/json") -> bytes:
    lines = (f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", "X-Roadkit-Request: 1")
    return "\r\n".join((*lines, f"Content-Length: {length}", "Connection: close", "", "")).encode()


async def ask(port: int, prompt: str, model: str, tokens: int) -> tuple[float, float, int]:
    """One streamed request over a connection of its own: seconds to the first token, to the end, and tokens."""
    fields = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    data = json.dumps({**fields, "stream": True, "stream_options": {"include_usage": True}}).encode()
    start, first, counted = time.perf_counter(), 0.0, 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head("POST", "/v1/completions", len(data)) + data)
    async for line in reader:
        if line.startswith(b"data: {"):
            first = first or time.perf_counter() - start
            if b'"usage":{' in line or b'"error":{' in line:
                event = json.loads(line[6:])
                assert "error" not in event, event
                counted = event["usage"]["completion_tokens"]
    writer.close()
    assert counted == tokens, f"{counted} tokens of {tokens}"
    return first, time.perf_counter() - start, counted


async def call(port: int, method: str, path: str, data: bytes = b"", kind: str = "application/json"):
    """One request of any kind; its status and its JSON."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head(method, path, len(data), kind) + data)
    answer = await reader.read()
    writer.close()
    before, _, body = answer.partition(b"\r\n\r\n")
    return int(before.split(b" ", 2)[1]), json.loads(body)


async def upload(port: int, name: str, folder: Path) -> int:
    """POST both files of an adapter; the status."""
    parts = [("name", b"", name.encode())]
    for field, file in (("config", "adapter_config.json"), ("weights", "adapter_model.safetensors")):
        parts.append((field, b'; filename="f"', (folder / file).read_bytes()))
    data = b"".join(
        b'--xXx\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (field.encode(), extra, content)
        for field, extra, content in parts
    )
    status, _ = await call(port, "POST", "/v1/adapters", data + b"--xXx--\r\n", "multipart/form-data; boundary=xXx")
    return status


async def open_loop(port: int, names: list[str], texts: list[str], rate: float, seconds: float, tokens: int, seed: int):
    """Poisson arrivals that do not wait for answers, the k-th name with probability ∝ 1/k; figures of the whole."""
    draw, start, tasks = random.Random(seed), time.perf_counter(), []
    weights = [1 / (i + 1) for i in range(len(names))]
    due = 0.0
    while due < seconds:
        await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
        text = f"{texts[len(tasks) % len(texts)]} {seed} {len(tasks)}"
        tasks.append(asyncio.ensure_future(ask(port, text, draw.choices(names, weights)[0], tokens)))
        due += draw.expovariate(rate)
    answers = await asyncio.gather(*tasks)
    per_token = sorted(1000 * (whole - first) / (count - 1) for first, whole, count in answers)
    return {
        "open_loop_tokens_per_second": sum(count for *_, count in answers) / (time.perf_counter() - start),
        "p99_ms_per_token": per_token[int(0.99 * (len(per_token) - 1))],
        "median_first_token_ms": statistics.median(1000 * first for first, *_ in answers),
    }
