"""Errors in OpenAI's shape, and which status belongs to which mistake.

raise ApiError(404, "no adapter 'formall'; did you mean 'formal'?", code="model_not_found", param="model")
"""

from __future__ import annotations

import logging

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from ..errors import ContextTooLong, ExpressionError, QueueFull, RoadkitError, UnknownAdapter
from ..validation import Problem, body_problem

log = logging.getLogger("roadkit.server")

_KINDS = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """What the client is told: a status, a message, and OpenAI's `type`, `param` and `code`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def body(self) -> dict:
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        param = None if self.param is None else _encodable(self.param)
        return {"error": {"message": _encodable(self.message)[:2000], "type": kind, "param": param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(max(1, round(self.retry_after)))} if self.retry_after is not None else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers=headers)


def _encodable(text: str) -> str:
    """Text without lone surrogates, which come in as JSON escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def not_found(path: str) -> ApiError:
    """The same answer for what is not there and for what the caller may not see."""
    return ApiError(404, f"nothing is served at {path[:200]}", code="not_found")


def overloaded(message: str, *, retry_after: float = 1) -> ApiError:
    return ApiError(429, message, code="rate_limit_exceeded", retry_after=retry_after)


def from_roadkit(error: RoadkitError, *, param: str | None = None) -> ApiError:
    """A library error as the client's mistake."""
    text = str(error)
    if isinstance(error, QueueFull):
        return overloaded(text)
    if isinstance(error, UnknownAdapter):
        return ApiError(404, f"the model does not exist: {text}", param="model", code="model_not_found")
    if isinstance(error, ExpressionError):
        return ApiError(400, text, param="model", code="invalid_expression")
    if isinstance(error, ContextTooLong):
        return ApiError(400, text, param=param or "messages", code="context_length_exceeded")
    return ApiError(400, text, param=param)


def install(app: FastAPI) -> None:
    """Answer every kind of failure in the same shape."""

    @app.exception_handler(ApiError)
    async def _api(request: Request, error: ApiError) -> JSONResponse:
        return error.response

    @app.exception_handler(RoadkitError)
    async def _roadkit(request: Request, error: RoadkitError) -> JSONResponse:
        return from_roadkit(error).response

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return from_problem(body_problem(error.errors()[0], _body_model(request))).response

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return not_found(request.url.path).response
        answer = ApiError(error.status_code, str(error.detail)).response
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def _crash(request: Request, error: Exception) -> JSONResponse:
        request_id = request.scope.get("state", {}).get("request_id")
        return ApiError(500, f"the server failed; its log has the reason under request {request_id}").response


def from_problem(problem: Problem) -> ApiError:
    """A field that is wrong, in OpenAI's words if it has some."""
    field = problem.field[:200]
    param = field.partition(".")[0][:100] or None
    if problem.kind == "json":
        return ApiError(400, f"the body is not valid JSON: {problem.detail}", code="invalid_json")
    if problem.kind == "unknown":
        text = f"Unrecognized request argument supplied: {field[:100]}{problem.hint}"
        return ApiError(400, text, param=param, code="unknown_parameter")
    if problem.kind == "missing":
        text = f"you must provide {field or 'the body'}"
        return ApiError(400, text, param=param, code="missing_required_parameter")
    text = f"{field}: {problem.detail}" if field else problem.detail
    return ApiError(400, text, param=param, code="invalid_value")


def _body_model(request: Request) -> type[BaseModel] | None:
    """The model of the route's body, whose fields a mistyped one may resemble."""
    field = getattr(request.scope.get("route"), "body_field", None)
    kind = getattr(getattr(field, "field_info", None), "annotation", None)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
