"""Sources that an admin names: only what the operator allowed, only public addresses, redirects and all."""

import http.server
import threading
from contextlib import contextmanager

import pytest

from roadkit.errors import AdapterError
from roadkit.server.adapters import remote as sources

LIMIT = 1 << 20


@contextmanager
def web(host, answer):
    """A server on `host` that answers GET by `answer(path)` → (status, headers, body); yields (port, paths asked)."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.headers["Host"], self.path))
            status, headers, body = answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer((host, 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1], asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def public(monkeypatch):
    """127.0.0.1 counts as a public address, reached as public.test; 127.0.0.2 and all else as what they are."""
    names = {"public.test": ["127.0.0.1"], "inside.test": ["127.0.0.2"], "both.test": ["127.0.0.1", "127.0.0.2"]}

    def resolve(host, port, *args, **kwargs):
        return [(2, 1, 6, "", (address, port or 0)) for address in names.get(host, [host])]

    real = sources._is_public
    monkeypatch.setattr(sources.socket, "getaddrinfo", resolve)
    monkeypatch.setattr(sources, "_is_public", lambda address: address == "127.0.0.1" or real(address))
    return names


def fetch(address, *allowed):
    return sources.fetch(address, allowed=allowed, limit=LIMIT)


def test_both_files_are_read(public):
    with web("127.0.0.1", lambda path: (200, {}, path.encode())) as (port, asked):
        base = f"http://public.test:{port}/adapters"
        expected = (b"/adapters/a/adapter_config.json", b"/adapters/a/adapter_model.safetensors")
        assert fetch(f"{base}/a", base) == expected
        assert {host for host, _ in asked} == {f"public.test:{port}"}


@pytest.mark.parametrize(
    "address",
    [
        "http://public.test/other/a",
        "http://public.test/adaptersX/a",
        "http://public.test/adapters/../other/a",
        "http://public.test/adapters/%2e%2e/a",
        "http://public.test/adapters/a?x=1",
        "http://user@public.test/adapters/a",
        "http://public.test.evil/adapters/a",
        "https://public.test/adapters/a",
        "http://public.test/adapters/a::file:///etc",
        "http://inside.test/adapters/a",
        "http://both.test/adapters/a",
        "http://[::1]/adapters/a",
        "http://[::1/adapters/a",
        "http://169.254.169.254/adapters/a",
        "http://127.0.0.2/adapters/a",
        "file:///adapters/a",
        "/adapters/a",
    ],
)
def test_what_is_not_allowed_all_looks_the_same(public, address):
    hosts = ("public.test", "inside.test", "both.test", "[::1]", "169.254.169.254", "127.0.0.2")
    with pytest.raises(AdapterError, match="is not among the sources"):
        fetch(address, *(f"http://{host}/adapters/" for host in hosts))


def test_redirects_stay_within_what_is_allowed(public):
    with web("127.0.0.2", lambda path: (200, {}, b"secret")) as (inner_port, inner):
        targets = {
            "ok": "/adapters/real/adapter_config.json",
            "private": f"http://127.0.0.2:{inner_port}/adapters/x",
            "named": f"http://inside.test:{inner_port}/adapters/x",
            "outside": "/secrets/x",
            "scheme": "file:///etc/passwd",
            "loop": "/adapters/loop/adapter_config.json",
        }

        def answer(path):
            target = targets.get(path.split("/")[2])
            return (302, {"Location": target}, b"") if target and "real" not in path else (200, {}, b"{}")

        with web("127.0.0.1", answer) as (outer_port, _):
            allowed = (
                f"http://public.test:{outer_port}/adapters",
                f"http://127.0.0.2:{inner_port}/adapters",
                f"http://inside.test:{inner_port}/adapters",
            )
            assert fetch(f"{allowed[0]}/ok", *allowed)[0] == b"{}"
            for kind in ("private", "named", "outside", "scheme"):
                with pytest.raises(AdapterError, match="is not among the sources"):
                    fetch(f"{allowed[0]}/{kind}", *allowed)
            with pytest.raises(AdapterError, match="more than 5 redirects"):
                fetch(f"{allowed[0]}/loop", *allowed)
        assert inner == []


@pytest.mark.parametrize("honest", range(7))
def test_the_address_that_was_checked_is_the_one_that_is_asked(public, monkeypatch, honest):
    """A name that is public for the first few look-ups and private then (DNS rebinding) leads nowhere private."""
    looked = []
    real = sources.socket.getaddrinfo

    def changing(host, port, *args, **kwargs):
        looked.append(host)
        return real("public.test" if host == "inside.test" and len(looked) <= honest else host, port)

    with web("127.0.0.2", lambda path: (200, {}, b"secret")) as (port, inner):
        monkeypatch.setattr(sources.socket, "getaddrinfo", changing)
        with pytest.raises(AdapterError):
            fetch(f"http://inside.test:{port}/a", f"http://inside.test:{port}")
        assert inner == []


def test_sizes_are_bounded(public):
    with web("127.0.0.1", lambda path: (200, {}, b"x" * (LIMIT + 1))) as (port, _):
        with pytest.raises(AdapterError, match=f"more than {LIMIT} bytes"):
            fetch(f"http://public.test:{port}/a", f"http://public.test:{port}")


def test_a_refusal_of_the_source_is_told_without_its_words(public):
    with web("127.0.0.1", lambda path: (403, {}, b"internal details")) as (port, _):
        with pytest.raises(AdapterError, match="cannot be read: HTTPStatusError$"):
            fetch(f"http://public.test:{port}/a", f"http://public.test:{port}")
