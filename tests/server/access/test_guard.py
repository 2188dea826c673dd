"""What no route gets to see: hostile hosts and origins, wrong types, bodies beyond the limit."""

import httpx
import pytest

from tests.server.tenants import BODY


def test_wrong_paths_methods_and_types(server):
    assert server.http.get("/nothing").json()["error"]["code"] == "not_found"
    assert server.http.get("/v1/completions").status_code == 405
    assert server.http.post("/v1/completions", json=BODY, headers={"Content-Type": "text/plain"}).status_code == 415
    response = server.http.post("/v1/adapters", data={"name": "x"}, files={"config": b"{}"})
    assert response.status_code == 400 and "weights" in response.json()["error"]["message"]
    wrong = {"Content-Type": "multipart/form-data"}
    assert server.http.post("/v1/adapters", content=b"no boundary", headers=wrong).status_code == 400


def test_a_body_without_length_stops_at_the_limit(server):
    def endless():
        for _ in range(100):
            yield b" " * 100_000

    with httpx.Client(base_url=server.url) as http:
        try:
            response = http.post("/v1/completions", content=endless(), headers={"Content-Type": "application/json"})
        except httpx.TransportError:
            return  # the server hung up while we were still sending
        assert response.status_code == 413


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost:1234"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
    ],
)
def test_hostile_hosts_and_origins_are_refused(server, headers, status):
    response = server.http.get("/v1/models", headers=headers)
    assert response.status_code == status
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("host", ["localhost@evil.example", "localhost:80@evil.example", "localhost:x", "", "[::1"])
def test_malformed_hosts_are_refused(server, host):
    assert server.http.get("/v1/models", headers={"Host": host}).status_code in (400, 403)


def test_changes_need_a_header_that_other_sites_cannot_send(server):
    with httpx.Client(base_url=server.url) as http:
        assert http.delete("/v1/adapters/quick").status_code == 403
        assert http.post("/v1/adapters", data={"name": "x"}, files={"config": b""}).status_code == 403
