"""The server fuzzed by its own OpenAPI schema: whatever is sent, no 5xx, and OpenAI's error shape."""

from typing import Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from roadkit.server.api.requests import ChatRequest, CompletionRequest


@pytest.fixture(scope="session")
def fuzzed(start, made, tmp_path_factory):
    """A server of its own: what is uploaded, deleted and asked there is nobody else's concern."""
    folder = tmp_path_factory.mktemp("fuzzed")
    return start(
        *("--adapters", f"quick={made(1)}", "--registry", str(folder)),
        *("--max-batch", "8", "--max-context", "48", "--max-queue", "4096"),
    )


OPERATIONS = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/v1/adapters"),
    ("POST", "/v1/adapters"),
    ("GET", "/v1/adapters/{name}"),
    ("DELETE", "/v1/adapters/{name}"),
    ("POST", "/v1/adapters/{name}/compose"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
    ("GET", "/v1/studio/session"),
    ("GET", "/v1/studio/adapters"),
    ("GET", "/v1/studio/stats"),
    ("GET", "/v1/studio/anatomy"),
    ("GET", "/v1/studio/layer"),
    ("POST", "/v1/studio/answers"),
]
NAMED = (
    "POST /v1/adapters",
    "GET /v1/studio/anatomy",
    "GET /v1/studio/layer",
    "POST /v1/studio/answers",
)  # an adapter's name


@pytest.fixture(scope="session")
def described(fuzzed):
    """(method, path) → operation, of the server's own description."""
    loaded = schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json")
    found: list[Any] = [result.ok() for result in cast(Any, loaded.get_all_operations())]
    return {(operation.method.upper(), operation.path): operation for operation in found}


# nothing in a GET can break the schema
CASES = [(*one, GenerationMode.POSITIVE) for one in OPERATIONS]
CASES += [(*one, GenerationMode.NEGATIVE) for one in OPERATIONS if one[0] == "POST"]


@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_no_request_makes_the_server_fail(described, fuzzed, method, path, mode):
    answered = set()

    @given(case=described[method, path].as_strategy(generation_mode=mode))
    @settings(max_examples=40, suppress_health_check=cast(Any, list(HealthCheck)), database=None, deadline=None)
    def fuzz(case):
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "quick"  # far enough in to reach the model
        response = case.call(headers={"X-Roadkit-Request": "1"})
        answered.add(response.status_code)
        assert response.status_code < 500, response.text
        if response.status_code >= 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert "Traceback" not in response.text

    fuzz()
    deep = mode is GenerationMode.POSITIVE and "{name}" not in path and f"{method} {path}" not in NAMED
    assert 200 in answered or not deep, answered


def test_every_operation_is_fuzzed(described):
    assert set(described) == set(OPERATIONS)


def test_the_schema_names_every_field(fuzzed):
    """What is fuzzed is what is read."""
    components = fuzzed.http.get("/openapi.json").json()["components"]["schemas"]
    for body in (CompletionRequest, ChatRequest):
        assert set(components[body.__name__]["properties"]) == set(body.model_fields)


def test_the_server_lived_through_it(fuzzed):
    assert fuzzed.answer("quick", max_tokens=2) and fuzzed.settled("roadkit_requests_running", 0)
    assert fuzzed.stop() == 0
