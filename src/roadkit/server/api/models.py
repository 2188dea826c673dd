"""`GET /v1/models`: the base model and the adapters, as OpenAI's clients list them.

app.include_router(models.router(service))
"""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request

from ..adapters.catalog import Entry
from ..service import Service


def router(service: Service) -> APIRouter:
    """The list, and one model of it."""
    routes = APIRouter(prefix="/v1")
    base = {
        "id": service.settings.model,
        "object": "model",
        "created": service.created,
        "owned_by": "roadkit",
        "parent": None,
    }

    @routes.get("/models")
    async def list_models(request: Request) -> dict[str, Any]:
        """The base model and every adapter that the caller can use."""
        found = service.catalog.visible(request.state.caller.tenant)
        return {"object": "list", "data": [base, *map(_model, found)]}

    @routes.get("/models/{name:path}")
    async def show_model(request: Request, name: str) -> dict[str, Any]:
        """The base model, an adapter, or any expression that would be served."""
        parse = partial(service.catalog.parse, request.state.caller.tenant, name)
        factors = await service.threads.work(parse)
        return {**_model(factors[0].entry), "id": name} if factors else base

    return routes


def _model(entry: Entry) -> dict[str, Any]:
    owner = "public" if entry.public else entry.tenant
    return {"id": entry.name, "object": "model", "created": entry.created, "owned_by": owner, "parent": "base"}
