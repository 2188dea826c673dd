"""What clients and machines do wrong, each answered without harm to others. These tests are of the server as a whole."""

import asyncio
import concurrent.futures
import json
import socket
import time

import httpx
import pytest

from roadkit import models
from tests.server.process import eventually, parts

BODY = {"model": "tiny", "prompt": "the quick", "max_tokens": 4, "temperature": 0}


def post(server, content: bytes, **headers) -> httpx.Response:
    headers = {"Content-Type": "application/json", **headers}
    return server.http.post("/v1/completions", content=content, headers=headers)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'"text"', 400),
        (b"\xff\xfe{}", 400),
        (b'{"model": "tiny", "prompt": "\xff"}', 400),
        (b'{"model": "tiny", "prompt": "\\ud800"}', 400),
        (b'{"model": "\\ud800", "prompt": "a"}', 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 50_000, 400),
        (b'{"model": "tiny", "prompt": "a", "temperature": NaN}', 400),
        (b'{"model": "tiny", "prompt": "a", "seed": ' + b"9" * 5000 + b"}", 400),
        (b'{"model": "tiny", "prompt": "a", "seed": 99999999999999999999999}', 400),
        (b'{"model": 5, "prompt": "a"}', 400),
        (b'{"prompt": "a"}', 400),
        (b'{"model": "tiny", "prompt": "a", "n": true}', 400),
        (b'{"model": "tiny", "prompt": "a", "stream": "yes"}', 400),
        (json.dumps({**BODY, "model": "x" * 1_000_000}).encode(), 400),
        (json.dumps({**BODY, "model": "quick*" * 200}).encode(), 400),
        (json.dumps({**BODY, "model": "-" * 1000 + "quick"}).encode(), 400),
        (json.dumps({**BODY, "prompt": "x" * 3_000_000}).encode(), 400),
        (json.dumps({**BODY, "prompt": "x" * 5_000_000}).encode(), 413),
        (json.dumps({**BODY, "model": "quick*99999999999999999999"}).encode(), 400),
        (json.dumps({**BODY, "model": "quick*1e400"}).encode(), 400),
        (json.dumps({**BODY, "model": "../../etc/passwd"}).encode(), 400),
    ],
)
def test_bad_bodies_are_the_clients_mistake(server, content, status):
    response = post(server, content)
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"} and len(response.text) < 5000


def test_a_client_that_leaves_mid_stream_frees_its_row(server):
    body = {**BODY, "max_tokens": 900, "stream": True, "ignore_eos": True}
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_lines())
    assert server.settled("roadkit_requests_running", 0, seconds=3)


def test_a_client_that_leaves_without_a_stream_frees_its_row(server):
    before = server.metric("roadkit_generated_tokens_total")
    data = json.dumps({**BODY, "max_tokens": 900, "ignore_eos": True}).encode()
    fields = ("Host: localhost", "Content-Type: application/json", f"Content-Length: {len(data)}")
    head = "\r\n".join(("POST /v1/completions HTTP/1.1", *fields))
    with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port)) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode() + data)
        assert eventually(lambda: server.metric("roadkit_requests_running") == 1)
    assert server.settled("roadkit_requests_running", 0, seconds=3)
    assert server.metric("roadkit_generated_tokens_total") - before < 900


def test_many_at_once_all_get_their_own_answer(server):
    names = ["tiny", "quick", "lazy", "quick*0.5", "quick + lazy", "-lazy"]
    alone = {name: server.answer(name) for name in names}
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(server.answer, names * 6))
    assert together == [alone[name] for name in names] * 6


def test_a_lost_gpu_ends_the_requests_and_is_seen_by_the_orchestrator(local, monkeypatch):
    async def run():
        async with local() as (service, http):
            assert (await http.post("/v1/completions", json=BODY)).status_code == 200

            def fail(*_):
                raise RuntimeError("CUDA error: device-side assert triggered")

            monkeypatch.setattr(service.backend.engine.runner, "step", fail)
            assert (await http.post("/v1/completions", json=BODY)).status_code == 500  # one step's fault
            assert (await http.get("/health")).status_code == 200
            monkeypatch.setattr(models, "device_lost", lambda device: True)
            assert (await http.post("/v1/completions", json=BODY)).status_code == 500
            for _ in range(100):
                if (await http.get("/health")).status_code == 503:
                    break
                await asyncio.sleep(0.05)
            assert [(await http.get(path)).status_code for path in ("/health", "/ready")] == [503, 503]

    asyncio.run(run())


def test_logs_hold_neither_prompts_nor_keys(server):
    server.answer("tiny", prompt="a very secret prompt")
    server.http.get("/v1/models", headers={"Authorization": "Bearer rk-secret"})
    server.http.get("/v1/secret-path-of-someone")
    text = server.log.read_text()
    assert '"route": "/v1/completions"' in text and "secret" not in text


@pytest.mark.parametrize(
    "content",
    [
        b'{"model": "tiny", "prompt": "a", "\\ud800": 1}',
        json.dumps({**BODY, "prompt": [{}] * 300_000}).encode(),
        json.dumps({**BODY} | {f"x{i}": 1 for i in range(200_000)}).encode(),
        b'{"model": "tiny", "prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"schema": '
        + b'{"a":' * 940
        + b"1"
        + b"}" * 940
        + b"}}}",
    ],
    ids=["surrogate", "mistakes", "fields", "nested"],
)
def test_costly_mistakes_are_cheap(server, content):
    """A million mistakes are told by the first: listing them all would hold the event loop, and so everybody."""
    response = post(server, content)
    assert response.status_code == 400 and len(response.content) < 5000


@pytest.mark.parametrize("charset", ["unicode_escape", "utf-7", "idna", "punycode", "zip", "nonsense"])
def test_uploads_in_odd_encodings_are_the_clients_mistake(server, charset):
    part = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    body = part % (b"name", b"", b"\\ud800+2AA-")
    for field in (b"config", b"weights"):
        body += part % (field, b'; filename="f"', b"{}")
    kind = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
    assert server.http.post("/v1/adapters", content=body + b"--x--\r\n", headers=kind).status_code == 400


def test_a_clock_that_goes_back_changes_nothing(local, made, tmp_path, monkeypatch):
    async def run():
        async with local(registry=tmp_path, request_seconds=20) as (_, http):
            now = time.time()
            monkeypatch.setattr("time.time", lambda: now - 86_400 * 365)
            assert (await http.post("/v1/adapters", data={"name": "x"}, files=parts(made(1)))).status_code == 201
            first = await http.post("/v1/completions", json={**BODY, "model": "x"})
            monkeypatch.setattr("time.time", lambda: -1.0)
            assert (await http.post("/v1/adapters", data={"name": "x"}, files=parts(made(2)))).status_code == 201
            second = await http.post("/v1/completions", json={**BODY, "model": "x"})
            assert first.status_code == second.status_code == 200
            assert first.json()["choices"][0]["text"] != second.json()["choices"][0]["text"]

    asyncio.run(run())


def test_no_fault_puts_prompts_or_keys_into_the_log(server):
    """What goes wrong is logged by its kind, never with what the client sent."""
    secret = "sesame-open"
    keys = {"Authorization": f"Bearer rk-{secret}"}
    for body in (
        {**BODY, "prompt": secret, "temperature": "hot"},
        {**BODY, "prompt": secret, "stop": secret, "max_tokens": 3, "stream": True},
        {**BODY, "prompt": secret, secret: 1},
        {**BODY, "model": secret},
        {**BODY, "prompt": secret, "response_format": {"type": "json_object"}, "max_tokens": 2},
    ):
        server.http.post("/v1/completions", json=body, headers=keys)
    chat = {"model": "quick", "messages": [{"role": "user", "content": secret}], "max_tokens": 2}
    server.http.post("/v1/chat/completions", json=chat, headers=keys)
    server.http.post("/v1/chat/completions", json={**chat, "messages": [{"role": secret, "content": secret}]})
    server.http.post("/v1/adapters", data={"name": secret}, files={"config": secret, "weights": secret}, headers=keys)
    server.http.post("/v1/adapters", json={"name": "x", "source": f"s3://{secret}/x"}, headers=keys)
    server.http.request(secret.upper(), "/v1/models", headers={"X-Request-Id": f"{secret} {secret}", **keys})
    server.http.get(f"/v1/models/{secret}?{secret}=1", headers={"Host": secret})
    assert secret not in server.log.read_text() and "/v1/completions" in server.log.read_text()
