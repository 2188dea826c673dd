"""`POST /v1/embeddings` and `POST /v1/classify`: encoders, each request with its own adapter expression.

app.include_router(router(service, backend))
"""

from __future__ import annotations

import asyncio
import base64
import math
import struct
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from ...errors import RoadkitError
from ..access.keys import Key
from ..adapters.residents import Lease
from ..backends.encoder import EncoderEngine, EncoderJob
from ..backends.fit import of_layers
from ..errors import ApiError, from_roadkit
from ..metrics import label_of
from ..service import Service
from .requests import Body, Many, Text, TokenId

Vector = list[float]


class EncodingRequest(Body):
    """What both routes take."""

    model: Text
    input: Text | Many[TokenId] | Many[Text] | Many[Many[TokenId]]
    user: Text | None = None

    @property
    def inputs(self) -> list[Any]:
        """Each text by itself."""
        single = isinstance(self.input, str) or (self.input and isinstance(self.input[0], int))
        return [self.input] if single else list(self.input)


class EmbeddingRequest(EncodingRequest):
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)


def router(service: Service, backend: EncoderEngine) -> APIRouter:
    """The encoder routes."""
    routes = APIRouter(prefix="/v1")

    @routes.post("/embeddings")
    async def embeddings(request: Request, body: EmbeddingRequest) -> dict[str, Any]:
        """Vectors of length 1."""
        width = backend.model.config.hidden_size
        if body.dimensions not in (None, width):
            raise ApiError(400, f"dimensions: this model gives {width}", param="dimensions")
        vectors, used = await _encode(service, backend, request, body, "embed")
        shape = _base64 if body.encoding_format == "base64" else list
        data = [{"object": "embedding", "index": i, "embedding": shape(one)} for i, one in enumerate(vectors)]
        usage = {"prompt_tokens": used, "total_tokens": used}
        return {"object": "list", "data": data, "model": body.model, "usage": usage}

    @routes.post("/classify")
    async def classify(request: Request, body: EncodingRequest) -> dict[str, Any]:
        """The head's labels and probabilities (vLLM's shape)."""
        if not backend.classifies:
            raise ApiError(400, "this model has no classification head", param="model")
        rows, used = await _encode(service, backend, request, body, "classify")
        usage = {"prompt_tokens": used, "total_tokens": used}
        return {"object": "list", "data": [_label(backend, i, row) for i, row in enumerate(rows)],
                "model": body.model, "usage": usage}  # fmt: skip

    return routes


async def _encode(
    service: Service, backend: EncoderEngine, request: Request, body: EncodingRequest, kind: str
) -> tuple[list[Vector], int]:
    key: Key = request.state.caller
    texts, most = body.inputs, service.settings.limits.max_inputs
    if not 1 <= len(texts) <= most:
        raise ApiError(400, f"input has {len(texts)} texts, 1 to {most} are allowed", param="input")
    meter, used = service.meter(key), 0
    meter.enter(body.model, count=len(texts))
    lease: Lease | None = None
    jobs: list[EncoderJob] = []

    def prepare() -> tuple[Lease | None, list[list[int]]]:
        token_ids = [backend.encode(text) for text in texts]
        factors = service.parse(key, body.model)
        return (service.residents.acquire(factors) if factors else None), token_ids

    try:
        lease, token_ids = await service.work(prepare)
        used = sum(map(len, token_ids))
        if kind == "classify" and not backend.own_head and not (lease and of_layers(lease.adapter).heads):
            raise ApiError(400, "the base has no head; name an adapter that brings one", param="model")
        loop, futures = asyncio.get_running_loop(), []
        for ids in token_ids:
            future: asyncio.Future[Vector] = loop.create_future()
            job = EncoderJob(ids, lease.name if lease else None, kind, key.tenant, partial(_settle, future))
            backend.submit(job)
            jobs.append(job)
            futures.append(future)
        watcher = asyncio.ensure_future(_watch(request, backend, jobs))
        try:
            together = asyncio.gather(*futures, return_exceptions=True)
            results = await asyncio.wait_for(together, service.settings.request_seconds)
        finally:
            watcher.cancel()
        failed = next((one for one in results if isinstance(one, BaseException)), None)
        if failed is not None:
            raise failed
        service.metrics.encoded(tenant=key.tenant, adapter=label_of(body.model), texts=len(texts), tokens=used)
        return [one for one in results if not isinstance(one, BaseException)], used
    except RoadkitError as error:
        raise from_roadkit(error, param="input") from None
    except TimeoutError:
        raise ApiError(504, "the request's time is over", code="cancelled") from None
    finally:
        for job in jobs:
            backend.cancel(job)
        meter.leave(body.model, count=len(texts), tokens=used)
        if lease is not None:
            service.residents.release(lease)


async def _watch(request: Request, backend: EncoderEngine, jobs: list[EncoderJob]) -> None:
    """Take waiting texts out of the queue when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    for job in jobs:
        backend.cancel(job)


def _settle(future: asyncio.Future, result: Vector | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def _base64(vector: Vector) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _label(backend: EncoderEngine, index: int, logits: Vector) -> dict[str, Any]:
    largest = max(logits)
    weights = [math.exp(value - largest) for value in logits]
    probabilities = [weight / sum(weights) for weight in weights]
    best = probabilities.index(max(probabilities))
    labels: dict[int, str] = dict(backend.model.config.id2label or {})  # type: ignore[arg-type]
    own = len(labels) == len(logits)  # an adapter's head has labels of its own, which nobody sent
    return {
        "index": index,
        "label": labels.get(best, f"LABEL_{best}") if own else f"LABEL_{best}",
        "probs": probabilities,
        "num_classes": len(logits),
    }
