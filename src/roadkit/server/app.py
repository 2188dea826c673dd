"""The ASGI application: routes, guard and lifespan around one `Service`.

app = build(Settings(model="smollm2"), Keyring(), EmbeddedEngine(engine), adapters=["adapters"])
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from .. import __version__
from . import errors
from .access.guard import Guard
from .access.keys import Keyring
from .adapters.catalog import Entry
from .adapters.folders import Folders
from .api import adapters as adapter_routes
from .api import completions
from .api import embeddings as encodings
from .backends.base import Backend
from .backends.encoder import EncoderEngine
from .errors import ApiError, from_roadkit
from .service import Service
from .settings import Settings
from .studio import pages as studio_pages
from .studio import routes as studio_routes


def build(
    settings: Settings, keyring: Keyring, backend: Backend | EncoderEngine, *, adapters: Sequence[str] = ()
) -> FastAPI:
    """An application whose `state.service` is running between start-up and shutdown of its lifespan."""
    service = Service(settings, keyring, backend)
    folders = Folders(service, list(adapters))
    folders.start()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        await service.work(service.restore)
        watching = [asyncio.create_task(folders.run()), asyncio.create_task(_watch_keys(service))]
        try:
            yield
        finally:
            for task in watching:
                task.cancel()
            await asyncio.get_running_loop().run_in_executor(None, service.close)

    app = FastAPI(
        title="roadkit", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.service = service
    errors.install(app)
    app.add_middleware(Guard, service=service)
    if isinstance(backend, EncoderEngine):
        app.include_router(encodings.router(service, backend))
    else:
        app.include_router(completions.router(service))
    app.include_router(adapter_routes.router(service))
    app.include_router(studio_routes.router(service))
    app.include_router(studio_pages.router())
    _add_model_routes(app, service)
    _add_probes(app, service)
    return app


async def _watch_keys(service: Service) -> None:
    while service.keyring.path is not None:
        await asyncio.sleep(service.settings.watch_seconds)
        await service.change(service.keyring.refresh)


def _add_model_routes(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def list_models(request: Request) -> dict[str, Any]:
        """The base model and every adapter that the caller can use."""
        found = service.catalog.visible(request.state.caller.tenant)
        return {"object": "list", "data": [_base(service), *map(_model, found)]}

    @app.get("/v1/models/{name:path}")
    async def show_model(request: Request, name: str) -> dict[str, Any]:
        """The base model, an adapter, or any expression that would be served."""
        caller = request.state.caller
        try:
            factors = await service.work(lambda: service.parse(caller, name))
        except ValueError as error:
            raise from_roadkit(error) from None  # type: ignore[arg-type]
        if not factors:
            return _base(service)
        return {**_model(factors[0][0]), "id": name}


def _base(service: Service) -> dict[str, Any]:
    name = service.settings.model
    return {"id": name, "object": "model", "created": service.created, "owned_by": "roadkit", "parent": None}


def _model(entry: Entry) -> dict[str, Any]:
    owner = "public" if entry.public else entry.tenant
    return {"id": entry.name, "object": "model", "created": entry.created, "owned_by": owner, "parent": "base"}


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """200 while the process can still answer; an orchestrator restarts it otherwise."""
        if not service.backend.alive:
            raise ApiError(503, "the engine has stopped")
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """200 while new requests are welcome."""
        if service.draining or not service.backend.alive:
            raise ApiError(503, "not ready", code="shutting_down" if service.draining else None, retry_after=5)
        return JSONResponse({"status": "ready", "model": service.settings.model})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus text."""
        stats = service.backend.stats()
        registered, resident = len(service.catalog.all()), len(service.residents)
        page = await service.work(lambda: service.metrics.page(stats, registered=registered, resident=resident))
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")
