"""The Studio's files, as they are in the package: no build step, nothing from elsewhere.

app.include_router(pages.router())      # /studio, /studio/app.js, …

They hold no secrets and are the same for everybody, so they are served without a key; the page asks for one and keeps
it in memory. The policy lets the page run its own modules and talk to its own server, nothing else, and Trusted Types
keep text from ever becoming HTML.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..errors import not_found

KINDS = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",
}


def is_page(path: str) -> bool:
    """Whether a path is one of the Studio's files, which need no key."""
    return path == "/studio" or path.startswith("/studio/")


def router() -> APIRouter:
    """Every file under static/, read once; index.html at /studio itself."""
    routes, found = APIRouter(), {}
    for file in files("roadkit.server.studio").joinpath("static").iterdir():
        kind = KINDS.get(file.name.rpartition(".")[2])
        if kind is not None:
            content = file.read_bytes()
            found[file.name] = content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"'

    def answer(request: Request, name: str) -> Response:
        content, kind, tag = found[name]
        headers = {**HEADERS, "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    @routes.get("/studio", include_in_schema=False)
    async def index(request: Request) -> Response:
        return answer(request, "index.html")

    @routes.get("/studio/{name}", include_in_schema=False)
    async def other(request: Request, name: str) -> Response:
        if name not in found:
            raise not_found(request.url.path)
        return answer(request, name)

    return routes
