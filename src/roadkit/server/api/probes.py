"""`/health`, `/ready` and `/metrics`: what an orchestrator and Prometheus ask.

app.include_router(probes.router(service))
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from ..errors import ApiError
from ..service import Service


def router(service: Service) -> APIRouter:
    """The three probes."""
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> dict[str, str]:
        """200 while the process can still answer; an orchestrator restarts it otherwise."""
        if not service.backend.alive:
            raise ApiError(503, "the engine has stopped")
        return {"status": "ok"}

    @routes.get("/ready")
    async def ready() -> JSONResponse:
        """200 while new requests are welcome."""
        draining = service.traffic.draining
        if draining or not service.backend.alive:
            raise ApiError(503, "not ready", code="shutting_down" if draining else None, retry_after=5)
        return JSONResponse({"status": "ready", "model": service.settings.model})

    @routes.get("/metrics")
    async def metrics() -> Response:
        """Prometheus text."""
        stats = service.backend.stats()
        registered, resident = len(service.catalog.all()), len(service.residents)
        page = await service.threads.work(lambda: service.metrics.page(stats, registered=registered, resident=resident))
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes
