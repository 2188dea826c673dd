"""The ASGI application: routes, guard and lifespan around one `Service`.

app = build(ServerSettings(model="smollm2"), Keyring(), EmbeddedBackend(engine), adapters=["adapters"])
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI

from .. import __version__
from . import errors
from .access.guard import Guard
from .access.keys import Keyring
from .adapters.folders import Folders
from .api import adapters as adapter_routes
from .api import completions, embeddings, models, probes
from .backends.base import Backend, encodes, generates
from .service import Service
from .settings import ServerSettings
from .studio import pages as studio_pages
from .studio import routes as studio_routes

log = logging.getLogger("roadkit.server")


def build(settings: ServerSettings, keyring: Keyring, backend: Backend, *, adapters: Sequence[str] = ()) -> FastAPI:
    """An application whose `state.service` is running between start-up and shutdown of its lifespan."""
    service = Service(settings, keyring, backend)
    folders = Folders(service.catalog, service.residents, adapters)
    folders.start()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        watching = [asyncio.create_task(_watch(folders.poll, service))]
        if keyring.path is not None:
            watching.append(asyncio.create_task(_watch(keyring.refresh, service)))
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
    app.add_middleware(
        Guard,
        keyring=keyring,
        traffic=service.traffic,
        settings=settings,
        requests=service.metrics.requests,
        is_page=studio_pages.is_page,
    )
    if generates(backend):
        app.include_router(completions.router(service, backend))
    if encodes(backend):
        app.include_router(embeddings.router(service, backend))
    app.include_router(adapter_routes.router(service))
    app.include_router(models.router(service))
    app.include_router(studio_routes.router(service))
    app.include_router(studio_pages.router())
    app.include_router(probes.router(service))
    return app


async def _watch(look: Callable[[], None], service: Service) -> None:
    """Look again every few seconds, on a thread, until cancelled."""
    while True:
        await asyncio.sleep(service.settings.watch_seconds)
        try:
            await service.threads.change(look)
        except Exception:
            log.exception("watching files failed; it goes on")
