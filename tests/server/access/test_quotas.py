"""What a key may use: refused with 429 beyond it, and charged for what the model read and wrote."""

import asyncio

import pytest

from roadkit.server.access.keys import new_key
from roadkit.server.access.quotas import Bucket, Meters
from roadkit.server.api.generation import Generation
from roadkit.server.api.requests import CompletionRequest
from roadkit.server.errors import ApiError
from roadkit.server.settings import Quota
from tests.server.tenants import BODY, keys


def test_a_changed_quota_holds_from_the_next_request():
    (_, key), meters = new_key("ci", tenant="acme"), Meters()
    narrow = key.model_copy(update={"quota": Quota(concurrency=1)})
    meters.of(key).enter("base", count=5)
    with pytest.raises(ApiError, match="at once"):
        meters.of(narrow).enter("base", count=2)
    meters.of(key).leave("base", count=5)
    assert meters.of(key) is meters.of(key) is not meters.of(narrow)


def test_a_bucket_outlives_a_clock_that_goes_back(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    bucket = Bucket(per_minute=60)
    bucket.take(61)
    now = 0.0
    assert bucket.wait() == pytest.approx(2)
    now = 3.0
    assert bucket.wait() == 0


def test_refused_requests_cost_no_tokens(local):
    heads, kept = keys(tokens_per_minute=100)

    async def run():
        async with local(keys=kept) as (service, http):
            long = {**BODY, "prompt": [1] * 2000}
            for _ in range(3):
                answer = await http.post("/v1/completions", json=long, headers=heads["acme"])
                assert answer.status_code == 400 and "fit the context" in answer.text
            assert (await http.post("/v1/completions", json=BODY, headers=heads["acme"])).status_code == 200
            several = {**BODY, "prompt": [[1] * 40, [2] * 40], "n": 2, "max_tokens": 1}
            charged = []
            meter = service.meters.of(service.keyring.caller(heads["acme"]["Authorization"]))
            leave = meter.leave
            meter.leave = lambda expression, **used: charged.append(used["tokens"]) or leave(expression, **used)
            answer = await http.post("/v1/completions", json=several, headers=heads["acme"])
            assert answer.status_code == 200 and charged == [40 + 40 + 4]  # each prompt once

    asyncio.run(run())


@pytest.mark.parametrize(
    ("quota", "models", "refused"),
    [
        ({"requests_per_minute": 2}, ["tiny", "tiny", "tiny"], "requests per minute"),
        ({"tokens_per_minute": 5}, ["tiny", "tiny"], "tokens per minute"),
    ],
)
def test_rates_are_limited(local, quota, models, refused):
    heads, kept = keys(**quota)

    async def run():
        async with local(keys=kept) as (_, http):
            answer = None
            for model in models:
                answer = await http.post("/v1/completions", json={**BODY, "model": model}, headers=heads["acme"])
            assert answer is not None
            assert answer.status_code == 429 and refused in answer.json()["error"]["message"]
            assert int(answer.headers["retry-after"]) >= 1
            assert (await http.post("/v1/completions", json=BODY, headers=heads["zeta"])).status_code == 200

    asyncio.run(run())


def test_tokens_that_nobody_waited_for_count(local):
    """A client that leaves before the last chunk has used what was generated for it."""
    heads, kept = keys(tokens_per_minute=50)

    async def run():
        async with local(keys=kept) as (service, http):
            caller = service.keyring.caller(heads["acme"]["Authorization"])
            body = CompletionRequest(model="tiny", prompt="the", max_tokens=900, stream=True, ignore_eos=True)
            generation = await Generation.begin(service, service.backend, caller, body)
            read = 0
            async for _ in generation.events():
                read += 1
                if read == 60:
                    break
            generation.close()
            while service.traffic.running:
                await asyncio.sleep(0.01)
            answer = await http.post("/v1/completions", json=BODY, headers=heads["acme"])
            assert answer.status_code == 429 and "tokens per minute" in answer.text

    asyncio.run(run())


@pytest.mark.parametrize(
    ("quota", "word"), [({"concurrency": 1}, "answers running"), ({"live_expressions": 1}, "different models")]
)
def test_what_runs_at_once_is_limited(local, made, quota, word):
    heads, kept = keys(**quota)

    async def run():
        async with local(keys=kept, adapters=[f"a={made(1)}"]) as (_, http):
            long = {**BODY, "max_tokens": 200, "ignore_eos": True}
            asked = [
                http.post("/v1/completions", json={**long, "model": m}, headers=heads["acme"]) for m in ("tiny", "a")
            ]
            first, second = await asyncio.gather(*asked)
            assert sorted([first.status_code, second.status_code]) == [200, 429]
            assert word in (first.text + second.text)
            assert (await http.post("/v1/completions", json=BODY, headers=heads["acme"])).status_code == 200

    asyncio.run(run())
