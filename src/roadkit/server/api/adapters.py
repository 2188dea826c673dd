"""`/v1/adapters`: upload, list, delete and freeze adapters while the server runs. Changes need an admin key.

    curl -F name=formal -F config=@adapter_config.json -F weights=@adapter_model.safetensors …/v1/adapters

Bytes are read once, hashed, validated, written, and only then made current.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.responses import JSONResponse

from ... import store
from ...errors import AdapterError, RoadkitError
from ...validation import problems
from ..access.keys import LOCAL, Key, Keyring
from ..adapters import remote
from ..adapters.catalog import Catalog, Entry
from ..errors import ApiError, from_problem, not_found
from ..service import Service
from .requests import Body, Text

log = logging.getLogger("roadkit.server")

Result = TypeVar("Result")


class SourceRequest(Body):
    """POST /v1/adapters as JSON: an adapter from an allowed source."""

    name: Text
    source: Text = Field(max_length=1024)
    tenant: Text | None = None
    public: bool = False
    pinned: bool = False


_FLAG = {"type": "string", "enum": ["true", "false", "1", "0"]}
_FILE = {"type": "string", "contentMediaType": "application/octet-stream"}
_ADD_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": SourceRequest.model_json_schema()},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "config": _FILE,
                    "weights": _FILE,
                    "tenant": {"type": "string"},
                    "public": _FLAG,
                    "pinned": _FLAG,
                },
                "required": ["name", "config", "weights"],
                "additionalProperties": False,
            }
        },
    },
}


class ComposeRequest(Body):
    """POST /v1/adapters/{name}/compose: freeze an expression into a new adapter of that name."""

    expression: Text
    public: bool = False
    pinned: bool = False


def router(service: Service) -> APIRouter:
    """The adapter routes."""
    routes = APIRouter(prefix="/v1")

    @routes.get("/adapters")
    async def list_adapters(request: Request) -> dict[str, Any]:
        """Every adapter that the caller can use."""
        found = service.catalog.visible(request.state.caller.tenant)
        return {"object": "list", "data": [describe(entry) for entry in found]}

    @routes.post("/adapters/{name:path}/compose", status_code=201)
    async def compose(request: Request, name: str, body: ComposeRequest) -> JSONResponse:
        """Compute an expression and keep the result under a new name."""
        caller = _admin(request)
        _check_name(service.catalog, name)
        config, weights = await service.threads.change(partial(_frozen, service, caller.tenant, body.expression))
        return await _activate(service, caller.tenant, name, config, weights, public=body.public, pinned=body.pinned)

    @routes.post("/adapters", status_code=201, openapi_extra={"requestBody": _ADD_BODY})
    async def add(request: Request) -> JSONResponse:
        """Add an adapter, or a new version of one: multipart with both files, or JSON that names a source."""
        caller = _admin(request)
        _check_keeps(service)
        if request.headers.get("content-type", "").lower().startswith("multipart/"):
            wanted, config, weights = await _uploaded(
                request, service.catalog, limit=service.settings.limits.max_upload
            )
        else:
            wanted = await _json(request)
            _check_name(service.catalog, wanted.name)
            allowed, limit = service.settings.allowed_sources, service.settings.limits.max_upload
            fetch = partial(remote.fetch, wanted.source, allowed=allowed, limit=limit)
            config, weights = await service.threads.change(fetch)
        tenant = wanted.tenant or caller.tenant
        _check_tenant(service.keyring, tenant)
        return await _activate(
            service, tenant, wanted.name, config, weights, public=wanted.public, pinned=wanted.pinned
        )

    @routes.get("/adapters/{name:path}")
    async def show(request: Request, name: str) -> dict[str, Any]:
        """One adapter."""
        entry = service.catalog.find(request.state.caller.tenant, name)
        if entry is None:
            raise _unknown(name)
        return describe(entry)

    @routes.delete("/adapters/{name:path}")
    async def delete(request: Request, name: str, tenant: str | None = None) -> dict[str, Any]:
        """Forget an adapter. Requests that use it finish."""
        caller = _admin(request)
        tenant = tenant or caller.tenant
        entry = service.catalog.find(tenant, name)
        if entry is None or (entry.tenant != tenant and entry.origin == "upload"):
            raise _unknown(name)
        if entry.origin == "folder":
            raise ApiError(409, f"{name!r} comes from a folder that the server watches; remove it there")
        await _change(service, partial(service.inventory.forget, entry))
        return {"id": name, "object": "adapter", "deleted": True}

    return routes


def describe(entry: Entry) -> dict[str, Any]:
    """An adapter as the routes show it; nothing about the server's folders."""
    return {
        "id": entry.name,
        "object": "adapter",
        "created": entry.created,
        "version": entry.version or None,
        "public": entry.public,
        "pinned": entry.pinned,
        "origin": entry.origin,
    }


async def _activate(
    service: Service, tenant: str, name: str, config: bytes, weights: bytes, *, public: bool, pinned: bool
) -> JSONResponse:
    """Keep an adapter and make it current."""
    _check_keeps(service)
    keep = partial(service.inventory.keep, tenant, name, config, weights, public=public, pinned=pinned)
    entry = await _change(service, keep)
    return JSONResponse(describe(entry), status_code=201)


async def _change(service: Service, call: Callable[[], Result]) -> Result:
    """Change the inventory, one change at a time."""
    async with service.changing:
        with _storage():
            return await service.threads.change(call)


@contextmanager
def _storage() -> Iterator[None]:
    """A disk's trouble as an answer."""
    try:
        yield
    except OSError as error:
        log.error("storing adapters failed: %s", error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise ApiError(507 if full else 503, "the server cannot store the adapter", code="storage") from error


def _frozen(service: Service, tenant: str, text: str) -> tuple[bytes, bytes]:
    """Both files of an expression's value."""
    factors = service.catalog.parse(tenant, text)
    if not factors:
        raise AdapterError("the base model is no adapter; name at least one")
    lease = service.residents.acquire(factors)
    try:
        if lease.intervenes:
            raise AdapterError("interventions cannot be frozen; name them in the request's expression")
        return store.serialize(lease.adapter.rotation)
    finally:
        service.residents.release(lease)


async def _json(request: Request) -> SourceRequest:
    try:
        return SourceRequest.model_validate(json.loads(await request.body()))
    except ValidationError as error:
        raise from_problem(problems(error, SourceRequest)[0]) from None
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not valid JSON", code="invalid_json") from None


async def _uploaded(request: Request, catalog: Catalog, *, limit: int) -> tuple[SourceRequest, bytes, bytes]:
    """The fields and both files of a multipart body; `limit` is the bytes that the weights may have."""
    try:
        with _storage():  # large parts go through a temporary file
            form = await request.form(max_files=2, max_fields=8, max_part_size=1 << 16)
    except (UnicodeError, LookupError):
        raise ApiError(400, "the body names an encoding that its fields are not in") from None
    try:
        known = {"name", "tenant", "public", "pinned", "config", "weights"}
        unknown = sorted(set(form) - known)
        if unknown:
            raise ApiError(400, f"unknown field {unknown[0][:100]!r}; there are {', '.join(sorted(known))}")
        name = form.get("name")
        if not isinstance(name, str):
            raise ApiError(400, "name is missing", param="name")
        _check_name(catalog, name)
        config = await _file(form, "config", store.MAX_CONFIG_BYTES)
        weights = await _file(form, "weights", limit)
        tenant = form.get("tenant") or None
        if not (tenant is None or isinstance(tenant, str)):
            raise ApiError(400, "tenant must be text", param="tenant")
        flags = {field: _flag(form, field) for field in ("public", "pinned")}
        return SourceRequest(name=name, source="", tenant=tenant, **flags), config, weights
    finally:
        await form.close()


async def _file(form: FormData, field: str, limit: int) -> bytes:
    file = form.get(field)
    if not isinstance(file, UploadFile):
        raise ApiError(400, f"{field} is missing; send the file as a multipart part of that name", param=field)
    data = await file.read(limit + 1)
    if len(data) > limit:
        raise ApiError(413, f"{field} has more than {limit} bytes", param=field)
    return data


def _flag(form: FormData, field: str) -> bool:
    value = form.get(field, "false")
    if value not in ("true", "false", "1", "0"):
        raise ApiError(400, f"{field} must be true or false", param=field)
    return value in ("true", "1")


def _admin(request: Request) -> Key:
    caller: Key = request.state.caller
    if not caller.admin:
        raise not_found(request.url.path)
    return caller


def _check_keeps(service: Service) -> None:
    if service.inventory.uploads is None:
        raise ApiError(400, "this server keeps no uploads: it was started without --registry")


def _check_tenant(keyring: Keyring, tenant: str) -> None:
    known = {key.tenant for key in keyring.keys} or {LOCAL}
    if tenant not in known:
        raise ApiError(400, f"no key belongs to tenant {tenant[:100]!r}", param="tenant")


def _check_name(catalog: Catalog, name: str) -> None:
    try:
        catalog.check_name(name)
    except RoadkitError as error:
        raise ApiError(400, str(error), param="name") from None


def _unknown(name: str) -> ApiError:
    return ApiError(404, f"no adapter {name[:200]!r}", param="name", code="model_not_found")
