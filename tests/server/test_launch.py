"""A server process from start to end: who it listens to, how it drains, what a kill leaves behind."""

import time
from contextlib import contextmanager

import httpx
import pytest

from roadkit.errors import RoadkitError
from roadkit.server.access.keys import Keyring
from roadkit.server.launch import check_exposure
from tests.server.process import eventually
from tests.server.tenants import BODY


def test_strangers_are_kept_out():
    with pytest.raises(RoadkitError, match="without API keys"):
        check_exposure("0.0.0.0", Keyring(), insecure=False, tls=False)
    check_exposure("127.0.0.1", Keyring(), insecure=False, tls=False)
    check_exposure("::1", Keyring(), insecure=False, tls=False)
    check_exposure("0.0.0.0", Keyring(), insecure=True, tls=False)


@contextmanager
def terminated(server, **options):
    """The lines of an answer that had begun when the server was told to end."""
    body = {**BODY, "ignore_eos": True, "stream": True, **options}
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.terminate()
        yield lines


def test_sigterm_lets_running_requests_finish(start):
    server = start("--drain-seconds", "30")
    with terminated(server, max_tokens=300) as lines:
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]" and '"finish_reason":"length"' in rest[-2]
    assert server.stop() == 0


def test_who_comes_while_the_server_drains_is_told_so(start):
    server = start("--drain-seconds", "30")
    with terminated(server, max_tokens=900, n=12) as lines:  # which takes long enough on a fast machine too
        with httpx.Client(base_url=server.url, timeout=60) as other:  # a new connection
            assert eventually(lambda: other.get("/ready").status_code == 503)
            refused = other.post("/v1/completions", json=BODY)
            assert refused.status_code == 503 and refused.headers["retry-after"]
            assert other.get("/health").status_code == 200
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert server.stop() == 0


def test_sigterm_ends_what_does_not_finish_in_time(start):
    server = start("--drain-seconds", "0.2")
    with terminated(server, max_tokens=1000, n=12) as lines:
        begun = time.monotonic()
        assert any("shutting down" in line for line in lines)
    assert server.stop() == 0 and time.monotonic() - begun < 15


def test_sigkill_during_generation_leaves_a_server_that_starts_again(start, made, tmp_path):
    registry = str(tmp_path / "registry")
    server = start("--registry", registry)
    assert server.upload("kept", made(3)).status_code == 201
    expected = server.answer("kept")
    body = {**BODY, "model": "kept", "max_tokens": 900, "ignore_eos": True, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        server.kill()
        with pytest.raises(httpx.TransportError):
            list(lines)
    server.stop()
    server = start("--registry", registry)
    assert server.answer("kept") == expected and server.stop() == 0
