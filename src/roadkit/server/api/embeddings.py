"""`POST /v1/embeddings` and `POST /v1/classify`: encoders, each request with its own adapter expression.

app.include_router(embeddings.router(service, backend))
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request

from ..backends.base import EncodingBackend, Vector
from ..errors import ApiError
from ..service import Service
from .encoding import Encoding
from .requests import EmbeddingRequest, EncodingRequest


def router(service: Service, backend: EncodingBackend) -> APIRouter:
    """The encoding routes."""
    routes = APIRouter(prefix="/v1")

    @routes.post("/embeddings")
    async def embeddings(request: Request, body: EmbeddingRequest) -> dict[str, Any]:
        """Vectors of length 1."""
        if body.dimensions not in (None, backend.vector_size):
            raise ApiError(400, f"dimensions: this model gives {backend.vector_size}", param="dimensions")
        encoding = await Encoding.begin(service, backend, request.state.caller, body, task="embed")
        vectors = await encoding.results(request)
        shape = _base64 if body.encoding_format == "base64" else list
        data = [{"object": "embedding", "index": i, "embedding": shape(one)} for i, one in enumerate(vectors)]
        return {"object": "list", "data": data, "model": body.model, "usage": _usage(encoding)}

    @routes.post("/classify")
    async def classify(request: Request, body: EncodingRequest) -> dict[str, Any]:
        """The head's labels and probabilities (vLLM's shape)."""
        if "classify" not in backend.abilities:
            raise ApiError(400, "this model has no classification head", param="model")
        encoding = await Encoding.begin(service, backend, request.state.caller, body, task="classify")
        rows = await encoding.results(request)
        data = [{"index": i, **_classified(row, backend.labels)} for i, row in enumerate(rows)]
        return {"object": "list", "data": data, "model": body.model, "usage": _usage(encoding)}

    return routes


def _usage(encoding: Encoding) -> dict[str, int]:
    return {"prompt_tokens": encoding.tokens, "total_tokens": encoding.tokens}


def _base64(vector: Vector) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _classified(logits: Vector, labels: Mapping[int, str]) -> dict[str, Any]:
    """`labels` are the base's own: an adapter's head has others, which nobody sent."""
    largest = max(logits)
    weights = [math.exp(value - largest) for value in logits]
    probabilities = [weight / sum(weights) for weight in weights]
    best, unnamed = probabilities.index(max(probabilities)), len(labels) != len(logits)
    label = f"LABEL_{best}"
    return {
        "label": label if unnamed else labels.get(best, label),
        "probs": probabilities,
        "num_classes": len(logits),
    }
