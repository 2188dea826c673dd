"""`/v1/studio/…`: what the page shows beyond the API's own routes. Keys and tenants hold here as everywhere.

app.include_router(routes.router(service))
"""

from __future__ import annotations

import functools
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from safetensors import SafetensorError, safe_open
from starlette.responses import JSONResponse, Response

from ... import __version__
from ...describe import anatomy, pairs
from ...errors import RoadkitError
from ...store import CONFIG, WEIGHTS
from ..access.keys import Key
from ..adapters.catalog import Entry
from ..adapters.residents import Residents
from ..api.adapters import describe
from ..api.requests import Body, GenerationRequest
from ..api.sse import EventStream
from ..backends.base import generates
from ..errors import ApiError, from_roadkit, not_found
from ..metrics import Metrics
from ..service import Service
from .comparison import Comparison

COLUMNS = 8


class ComparisonRequest(Body):
    """POST /v1/studio/answers: requests as the API takes them, one a column."""

    requests: list[GenerationRequest] = Field(min_length=1, max_length=COLUMNS)


def router(service: Service) -> APIRouter:
    """The page's own routes."""
    routes, backend = APIRouter(prefix="/v1/studio"), service.backend

    @routes.get("/session")
    async def session(request: Request) -> dict[str, Any]:
        """What the caller may do here, and what the model is."""
        caller: Key = request.state.caller
        return {
            "model": service.settings.model,
            "version": __version__,
            "keyed": not service.keyring.open,
            "admin": caller.admin,
            "uploads": caller.admin and service.inventory.uploads is not None,
            "generates": "generate" in backend.abilities,
            "chats": "chat" in backend.abilities,
        }

    @routes.get("/adapters")
    async def adapters(request: Request) -> dict[str, Any]:
        """The caller's adapters with what the table shows of them."""
        caller: Key = request.state.caller
        counts = _counts(service.metrics, caller)

        def rows() -> list[dict[str, Any]]:
            return [_row(service.residents, caller, entry, counts) for entry in service.catalog.visible(caller.tenant)]

        return {"object": "list", "data": await service.threads.work(rows)}

    @routes.get("/anatomy")
    async def show_anatomy(request: Request, model: str) -> JSONResponse:
        """Layer × module of any expression."""
        return JSONResponse(await _computed(service, request.state.caller, model, anatomy))

    @routes.get("/layer")
    async def show_layer(request: Request, model: str, layer: str, strength: float = 1.0) -> JSONResponse:
        """The blocks of one layer at a strength, computed as they would be for a request."""
        if not abs(strength) <= 8:
            raise ApiError(400, f"strength is {strength:g}, |strength| is at most 8", param="strength")
        look = partial(pairs, layer=layer, strength=strength)
        return JSONResponse(await _computed(service, request.state.caller, model, look))

    @routes.get("/stats")
    async def stats(request: Request) -> dict[str, Any]:
        """The server's load at this moment. Admins only, as /metrics is."""
        caller: Key = request.state.caller
        if not caller.admin:
            raise not_found(request.url.path)
        now = backend.stats()
        return {
            "running": now.running,
            "waiting": now.waiting,
            "max_batch": now.max_batch,
            "distinct": now.distinct,
            "rows": now.resident,
            "tokens": now.tokens,
            "steps": now.steps,
            "seconds_busy": now.seconds_busy,
            "cache_used": now.cache_used,
            "registered": len(service.catalog.all()),
            "resident": len(service.residents),
            "adapters": _counts(service.metrics, caller),
        }

    if generates(backend):

        @routes.post("/answers", response_model=None)
        async def compare(request: Request, body: ComparisonRequest) -> Response:
            """Answer several requests in one batch, over one stream."""
            comparison = await Comparison.begin(service, backend, request.state.caller, body.requests)
            return EventStream(comparison, comparison.events(), request)

    return routes


async def _computed(service: Service, caller: Key, model: str, look: Any) -> dict[str, Any]:
    """look(adapter) for an expression, on a worker thread."""

    def compute() -> dict[str, Any]:
        factors = service.catalog.parse(caller.tenant, model)
        if not factors:
            raise ApiError(400, "the base model turns nothing; name an adapter", param="model")
        lease = service.residents.acquire(factors)
        try:
            if lease.intervenes:
                raise ApiError(400, "an intervention turns hidden states, not a layer's outputs", param="model")
            return look(lease.adapter.rotation)
        finally:
            service.residents.release(lease)

    try:
        return await service.threads.work(compute)
    except RoadkitError as error:
        raise from_roadkit(error, param="model") from None


def _counts(metrics: Metrics, caller: Key) -> dict[str, dict[str, float]]:
    """Adapter → answers and tokens so far; an admin's over all tenants, others' their own."""
    found: dict[str, dict[str, float]] = {}
    for field, counter in (("answers", metrics.answers), ("tokens", metrics.generated_tokens)):
        for family in counter.collect():
            for sample in family.samples:
                if sample.name.endswith("_total") and (caller.admin or sample.labels["tenant"] == caller.tenant):
                    row = found.setdefault(sample.labels["adapter"], {"answers": 0.0, "tokens": 0.0})
                    row[field] += sample.value
    return found


def _row(residents: Residents, caller: Key, entry: Entry, counts: dict[str, dict[str, float]]) -> dict[str, Any]:
    own = entry.tenant == caller.tenant
    return {
        **describe(entry),
        **_facts(entry.source),
        "resident": residents.holds(entry),
        "answers": counts.get(entry.name, {}).get("answers", 0.0),
        "deletable": caller.admin and own and entry.origin == "upload",
    }


def _facts(source: str) -> dict[str, Any]:
    """Variant, layers, parameters and bytes of an adapter's folder; nothing for a remote or broken one."""
    try:
        found = os.stat(Path(source) / WEIGHTS)
    except OSError:
        return {}
    return dict(_read_facts(source, found.st_mtime_ns, found.st_size))


@functools.lru_cache(maxsize=4096)
def _read_facts(source: str, changed: int, size: int) -> dict[str, Any]:
    """From the configuration and the header of the weights alone; `changed` and `size` name the version."""
    try:
        config = json.loads((Path(source) / CONFIG).read_bytes())
        with safe_open(Path(source) / WEIGHTS, "numpy") as tensors:
            angles = [name for name in tensors.keys() if name.endswith(".road_theta")]  # noqa: SIM118
            parameters = 2 * sum(tensors.get_slice(name).get_shape()[0] for name in angles)
        facts = {"variant": str(config["variant"])[:20], "group_size": int(config["group_size"])}
    except (OSError, ValueError, KeyError, TypeError, IndexError, SafetensorError):
        return {}
    return {**facts, "layers": len(angles), "parameters": parameters, "bytes": size}
