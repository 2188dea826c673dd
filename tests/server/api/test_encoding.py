"""Encodings live as generations do: charged, cancelled, timed, drained, and given back once."""

import asyncio
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from roadkit.server.access.keys import Keyring
from roadkit.server.api.encoding import Encoding
from roadkit.server.api.requests import EncodingRequest
from roadkit.server.app import build
from roadkit.server.backends.encoder import EncoderBackend
from roadkit.server.errors import ApiError
from roadkit.server.settings import ServerSettings
from tests.server.tenants import keys


class Client:
    """Who asked: still there, or gone."""

    def __init__(self, *, gone: bool = False):
        self.gone = gone

    async def receive(self):
        if not self.gone:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}


@pytest.fixture
def stuck(tiny_bert, tiny_tokenizer, monkeypatch):
    """`async with stuck() as (service, begin, meter)`: a server whose encoder never takes a job out of its queue."""

    @asynccontextmanager
    async def run(**settings):
        heads, kept = keys(tokens_per_minute=1000, concurrency=8)
        backend = EncoderBackend(tiny_bert(vocab_size=384), tiny_tokenizer)
        monkeypatch.setattr(backend._worker, "tell", lambda command: None)
        app = build(ServerSettings(model="tiny", **settings), Keyring(tuple(kept)), backend)
        service = app.state.service
        key = service.keyring.caller(heads["acme"]["Authorization"])

        async def begin(texts=("the quick", "brown")):
            body = EncodingRequest(model="tiny", input=list(texts))
            return await Encoding.begin(service, backend, key, body, task="embed")

        yield service, begin, service.meters.of(key)

    return run


async def ended(encoding, request) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await asyncio.wait_for(encoding.results(request), 10)
    return caught.value


def given_back(service, meter) -> bool:
    return not service.traffic.running and not meter._live and not len(service.backend._queue)


def test_a_client_that_leaves_takes_its_texts_out_of_the_queue(stuck):
    async def run():
        async with stuck() as (service, begin, meter):
            encoding = await begin()
            assert len(service.backend._queue) == 2 and meter._live["tiny"] == 2
            assert (await ended(encoding, Client(gone=True))).message == "the client has gone"
            assert given_back(service, meter)
            assert meter._tokens.level == 1000, "nothing was read"

    asyncio.run(run())


def test_a_deadline_ends_an_encoding(stuck):
    async def run():
        async with stuck(request_seconds=0.05) as (service, begin, meter):
            error = await ended(await begin(), Client())
            assert (error.status, error.code, error.message) == (504, "cancelled", "the request's time is over")
            assert given_back(service, meter)

    asyncio.run(run())


def test_a_batch_that_does_not_end_holds_up_nobody_beyond_the_deadline(stuck):
    async def run():
        async with stuck(request_seconds=0.05) as (service, begin, meter):
            encoding = await begin()
            while service.backend._queue.pop():  # as if both texts were in a batch that hangs
                pass
            error = await ended(encoding, Client())
            assert (error.status, error.message) == (504, "the request's time is over")

    asyncio.run(run())


def test_a_server_that_shuts_down_ends_encodings_too(stuck):
    async def run():
        async with stuck() as (service, begin, meter):
            encoding = await begin()
            service.traffic.drain()
            assert service.traffic.running
            service.traffic.cut()
            assert (await ended(encoding, Client())).status == 503
            assert given_back(service, meter)

    asyncio.run(run())


def test_what_cannot_begin_leaves_nothing_behind(stuck):
    """A text that does not fit, more than the quota, and a queue that is full after the first text."""

    async def run():
        async with stuck() as (service, begin, meter):
            for texts, status in ((["x" * 2000], 400), (["x"] * 9, 400)):
                with pytest.raises(ApiError) as caught:
                    await begin(texts)
                assert caught.value.status == status and given_back(service, meter)
            service.backend._queue.max_waiting_per_tenant = 1
            with pytest.raises(ApiError) as caught:
                await begin()
            assert caught.value.status == 429 and given_back(service, meter)
            assert meter._tokens.level == 1000, "what is refused costs nothing"

    asyncio.run(run())


def test_what_was_read_is_charged_once(tiny_bert, tiny_tokenizer):
    async def run():
        heads, kept = keys(tokens_per_minute=1000)
        backend = EncoderBackend(tiny_bert(vocab_size=384), tiny_tokenizer)
        app = build(ServerSettings(model="tiny"), Keyring(tuple(kept)), backend)
        async with app.router.lifespan_context(app):
            service = app.state.service
            key = service.keyring.caller(heads["acme"]["Authorization"])
            body = EncodingRequest(model="tiny", input=[[5] * 7, [6] * 3])
            encoding = await Encoding.begin(service, backend, key, body, task="embed")
            assert len(await encoding.results(cast(Any, Client()))) == 2 and encoding.tokens == 10
            encoding.close()
            assert given_back(service, service.meters.of(key))
            assert service.meters.of(key)._tokens.level == pytest.approx(990, abs=0.5)

    asyncio.run(run())
