"""What an operator may set, with the one default of each.

    settings = ServerSettings(model="smollm2", limits=Limits(max_n=4))

`Limits` bound one request, `Quota` one key, `ServerSettings` the server.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """Immutable; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(Frozen):
    """Bounds of a single request. What is beyond is refused with 400 (413 for bytes), never cut."""

    max_body: int = 4 << 20  # bytes of JSON
    max_upload: int = 256 << 20  # bytes of an adapter's two files together
    max_name: int = 128  # characters of an adapter's name
    max_expression: int = 1024  # characters of the `model` field
    max_prompts: int = 64  # prompts × n of one request
    max_n: int = 16
    max_logprobs: int = 20
    max_stop: int = 16
    max_stop_length: int = 256
    max_schema: int = 64 << 10  # bytes of a JSON schema
    max_messages: int = 1024
    max_tokens: int = 4096  # generated at most, also if a chat request names no number
    max_inputs: int = 256  # texts of one embeddings or classify request


class Quota(Frozen):
    """Bounds of one key; None is unlimited."""

    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    concurrency: int | None = Field(default=None, gt=0)
    live_expressions: int | None = Field(default=None, gt=0)  # different compositions running at once


class ServerSettings(Frozen):
    """What one server is told.

    model             what clients call the base model
    registry          folder that keeps uploads; None takes none
    allowed_sources   prefixes (`s3://bucket/adapters/`) that an admin may load adapters from
    allowed_hosts     values of the Host header that are answered beside the loopback names, if there are no keys
    max_resident      compositions kept in memory beyond those in use
    stream_buffer     chunks that a client may be behind before it is cut off
    request_seconds   after so long a request is cancelled
    drain_seconds     how long running requests may go on after SIGTERM
    watch_seconds     how often the folders of adapters and the keys' file are looked at
    """

    model: str
    limits: Limits = Limits()
    registry: Path | None = None
    allowed_sources: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_resident: int = Field(default=64, gt=0)
    stream_buffer: int = Field(default=1024, gt=0)
    request_seconds: float = Field(default=600.0, gt=0)
    drain_seconds: float = Field(default=30.0, ge=0)
    watch_seconds: float = Field(default=2.0, gt=0)
