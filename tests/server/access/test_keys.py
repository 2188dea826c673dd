"""Keys, tenants, limits: what one may see and use, and what looks as if it were not there."""

import asyncio
import errno
import json
import os
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from roadkit.cli import app
from roadkit.errors import RoadkitError
from roadkit.server.access.keys import Key, Keyring, new_key
from roadkit.server.api.generation import Generation
from roadkit.server.api.requests import CompletionRequest
from roadkit.server.errors import ApiError
from roadkit.server.launch import check_exposure
from roadkit.server.service import Service
from roadkit.server.settings import Limits, Quota, Settings
from tests.server.process import parts

BODY = {"model": "tiny", "prompt": "the quick", "max_tokens": 4, "temperature": 0}


def keys(**quota):
    """Two tenants' keys and an admin's: texts, and what the server keeps."""
    made = {
        "acme": new_key("acme-ci", tenant="acme", quota=Quota(**quota)),
        "zeta": new_key("zeta-ci", tenant="zeta"),
        "admin": new_key("root", tenant="acme", admin=True),
    }
    return {name: {"Authorization": f"Bearer {text}"} for name, (text, _) in made.items()}, [
        key for _, key in made.values()
    ]


def test_keys_are_kept_as_digests(tmp_path):
    text, key = new_key("ci", tenant="acme")
    Keyring((key,)).save(tmp_path / "keys.json")
    assert text not in (tmp_path / "keys.json").read_text() and len(text) > 40
    assert (tmp_path / "keys.json").stat().st_mode & 0o077 == 0
    assert Keyring.load(tmp_path / "keys.json").caller(f"Bearer {text}") == key


def test_a_key_file_is_never_readable_by_others(tmp_path, monkeypatch):
    modes, replace = [], os.replace

    def spy(old, new):
        modes.append(os.stat(old).st_mode & 0o777)
        replace(old, new)

    monkeypatch.setattr(os, "replace", spy)
    Keyring().save(tmp_path / "keys.json")
    assert modes == [0o600]
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600


def test_a_broken_key_file_is_not_shown(tmp_path):
    (tmp_path / "keys.json").write_text('{"keys": [{"name": "x", "sha256": "topsecret"}]}')
    with pytest.raises(RoadkitError) as caught:
        Keyring.load(tmp_path / "keys.json")
    assert "topsecret" not in str(caught.value)


def test_keys_are_read_again_when_their_file_changes(local, tmp_path):
    path = tmp_path / "keys.json"
    (text, first), (other, second) = new_key("one", tenant="acme"), new_key("two", tenant="zeta")
    Keyring((first,)).save(path)

    async def run():
        async with local(keyring=Keyring.load(path), watch_seconds=0.02) as (service, http):

            async def status(key):
                answer = await http.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
                return answer.status_code

            async def becomes(key, wanted):
                for _ in range(200):
                    if await status(key) == wanted:
                        return True
                    await asyncio.sleep(0.02)

            assert (await status(text), await status(other)) == (200, 401)
            Keyring((first, second)).save(path)
            assert await becomes(other, 200)
            Keyring((second,)).save(path)
            assert await becomes(text, 401) and await status(other) == 200
            for between in (lambda: path.write_text("{"), path.unlink):  # in the middle of an edit
                between()
                await asyncio.sleep(0.2)
                assert await status(other) == 200
            Keyring().save(path)  # nobody has a key any more: that opens no door
            assert await becomes(other, 401)
            assert (await http.get("/v1/models")).status_code == 401

    asyncio.run(run())


def test_a_changed_quota_holds_from_the_next_request(tmp_path):
    _, key = new_key("ci", tenant="acme")
    service = Service(Settings(model="base"), Keyring((key,)), SimpleNamespace(close=lambda: None))
    narrow = key.model_copy(update={"quota": Quota(concurrency=1)})
    service.meter(key).enter("base", count=5)
    with pytest.raises(ApiError, match="at once"):
        service.meter(narrow).enter("base", count=2)
    service.meter(key).leave("base", count=5)
    assert service.meter(key) is service.meter(key) is not service.meter(narrow)


def test_a_server_with_a_key_file_needs_a_key_in_it(tmp_path):
    Keyring().save(tmp_path / "keys.json")
    done = CliRunner().invoke(app, ["serve", "--keys", str(tmp_path / "keys.json")])
    assert isinstance(done.exception, RoadkitError) and "holds no key; make one" in str(done.exception)


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
            meter = service.meter(service.keyring.caller(heads["acme"]["Authorization"]))
            leave = meter.leave
            meter.leave = lambda expression, **used: charged.append(used["tokens"]) or leave(expression, **used)
            answer = await http.post("/v1/completions", json=several, headers=heads["acme"])
            assert answer.status_code == 200 and charged == [40 + 40 + 4]  # each prompt once

    asyncio.run(run())


def test_strangers_are_kept_out():
    with pytest.raises(RoadkitError, match="without API keys"):
        check_exposure("0.0.0.0", Keyring(), insecure=False, tls=False)
    check_exposure("127.0.0.1", Keyring(), insecure=False, tls=False)
    check_exposure("::1", Keyring(), insecure=False, tls=False)
    check_exposure("0.0.0.0", Keyring(), insecure=True, tls=False)


def test_tenants_do_not_see_each_other(local, made, tmp_path):
    heads, kept = keys()

    async def run():
        async with local(keys=kept, registry=tmp_path, adapters=[f"shared={made(1)}"]) as (_, http):

            async def ask(who, model):
                return await http.post("/v1/completions", json={**BODY, "model": model}, headers=heads[who])

            assert (await http.get("/v1/models")).status_code == 401
            assert (await http.get("/v1/models", headers={"Authorization": "Bearer rk-no"})).status_code == 401
            assert (await http.get("/health")).status_code == 200
            for tenant, seed in (("acme", 2), ("zeta", 3)):
                fields = {"name": f"secret-{tenant}", "tenant": tenant}
                answer = await http.post("/v1/adapters", data=fields, files=parts(made(seed)), headers=heads["admin"])
                assert answer.status_code == 201, answer.text
            names = {model["id"] for model in (await http.get("/v1/models", headers=heads["zeta"])).json()["data"]}
            assert names == {"tiny", "shared", "secret-zeta"}
            assert (await ask("zeta", "secret-zeta + shared")).status_code == 200
            hidden, absent = await ask("zeta", "secret-acme"), await ask("zeta", "secret-none")
            assert hidden.status_code == absent.status_code == 404
            assert hidden.text.replace("secret-acme", "*") == absent.text.replace("secret-none", "*")
            one = await http.get("/v1/adapters/secret-acme", headers=heads["zeta"])
            two = await http.get("/v1/adapters/secret-none", headers=heads["zeta"])
            assert one.status_code == 404 and one.text.replace("acme", "none") == two.text
            for method, path in (("DELETE", "/v1/adapters/secret-zeta"), ("GET", "/metrics"), ("POST", "/v1/adapters")):
                body = {"content": "{}", "headers": {**heads["zeta"], "Content-Type": "application/json"}}
                refused = await http.request(method, path, **body)
                assert refused.status_code == 404 and refused.json()["error"]["code"] == "not_found"
            assert (await http.get("/metrics", headers=heads["admin"])).status_code == 200

    asyncio.run(run())


def test_a_public_upload_is_everybodys(local, made, tmp_path):
    heads, kept = keys()

    async def run():
        async with local(keys=kept, registry=tmp_path) as (_, http):
            fields = {"name": "ours", "public": "true"}
            await http.post("/v1/adapters", data=fields, files=parts(made(2)), headers=heads["admin"])
            answer = await http.post("/v1/completions", json={**BODY, "model": "ours"}, headers=heads["zeta"])
            assert answer.status_code == 200

    asyncio.run(run())


def test_computed_prompts_are_not_shared_between_tenants(local):
    """Whether a prompt was cached tells whether somebody sent it."""
    heads, kept = keys()

    async def run():
        async with local(keys=kept) as (_, http):

            async def cached(who):
                body = {**BODY, "prompt": [7] * 64}
                answer = (await http.post("/v1/completions", json=body, headers=heads[who])).json()
                return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

            assert await cached("acme") == 0
            assert await cached("zeta") == 0
            assert await cached("acme") > 0

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
            for model in models:
                answer = await http.post("/v1/completions", json={**BODY, "model": model}, headers=heads["acme"])
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
            generation = await Generation.begin(service, caller, body, ["the"], max_tokens=900, logprobs=None)
            read = 0
            async for _ in generation.events():
                read += 1
                if read == 60:
                    break
            generation.close()
            while service.jobs:
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


def test_a_flood_does_not_starve_another_tenant(local):
    """Round robin by tenant at admission: behind 24 of acme's requests, zeta's comes after at most those that run."""
    heads, kept = keys()

    async def run():
        async with local(keys=kept, max_batch=2) as (_, http):
            done: list[str] = []

            async def ask(who):
                body = {**BODY, "max_tokens": 40, "ignore_eos": True}
                assert (await http.post("/v1/completions", json=body, headers=heads[who])).status_code == 200
                done.append(who)

            flood = [asyncio.create_task(ask("acme")) for _ in range(24)]
            while not done:
                await asyncio.sleep(0.005)
            before = len(done)
            await asyncio.create_task(ask("zeta"))
            overtaken = done.index("zeta") - before
            await asyncio.gather(*flood)
            assert overtaken <= 6, done

    asyncio.run(run())


def test_a_full_disk_leaves_the_old_version(local, made, tmp_path, monkeypatch):
    async def run():
        async with local(registry=tmp_path) as (_, http):
            assert (await http.post("/v1/adapters", data={"name": "x"}, files=parts(made(1)))).status_code == 201
            before = (await http.post("/v1/completions", json={**BODY, "model": "x"})).json()["choices"][0]["text"]

            def full(*args):
                raise OSError(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr("os.fsync", full)
            refused = await http.post("/v1/adapters", data={"name": "x"}, files=parts(made(2)))
            monkeypatch.undo()
            assert refused.status_code == 507 and str(tmp_path) not in refused.text
            after = (await http.post("/v1/completions", json={**BODY, "model": "x"})).json()["choices"][0]["text"]
            assert after == before and not [path for path in tmp_path.rglob("*") if ".tmp" in path.name]

    asyncio.run(run())


def test_least_recently_used_adapters_leave_memory(local, made, tmp_path):
    async def run():
        adapters = [f"a{i}={made(i)}" for i in range(1, 7)]
        async with local(adapters=adapters, max_resident=2, registry=tmp_path) as (service, http):
            pinned = {"name": "pinned", "pinned": "true"}
            await http.post("/v1/adapters", data=pinned, files=parts(made(8)))
            texts = {}
            for _ in range(2):
                for i in range(1, 7):
                    answer = await http.post("/v1/completions", json={**BODY, "model": f"a{i}", "max_tokens": 12})
                    text = answer.json()["choices"][0]["text"]
                    assert texts.setdefault(i, text) == text
            assert len(service.residents) == 3 and len(set(texts.values())) == 6
            assert service.catalog.own("local", "pinned").version[:32] in service.residents._leases
            page = (await http.get("/metrics")).text
            assert "roadkit_adapter_evictions_total" in page and "roadkit_adapters_registered 7.0" in page

    asyncio.run(run())


def test_limits_can_be_set(local):
    async def run():
        async with local(limits=Limits(max_body=300, max_tokens=5)) as (_, http):
            assert (await http.post("/v1/completions", json={**BODY, "max_tokens": 6})).status_code == 400
            assert (await http.post("/v1/completions", json={**BODY, "prompt": "x" * 300})).status_code == 413
            chat = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": 0}
            answer = (await http.post("/v1/chat/completions", json=chat)).json()
            assert answer["usage"]["completion_tokens"] <= 5

    asyncio.run(run())


def test_two_servers_do_not_share_a_registry(local, tmp_path):
    async def run():
        async with local(registry=tmp_path):
            with pytest.raises(RoadkitError, match="another server"):
                async with local(registry=tmp_path):
                    pass

    asyncio.run(run())


def test_metrics_labels_are_bounded():
    from roadkit.server.metrics import MAX_LABELS, Metrics

    metrics = Metrics()
    seen = {metrics.bounded("t", f"a{i}") for i in range(10 * MAX_LABELS)}
    assert len(seen) == MAX_LABELS + 1 and ("t", "(other)") in seen
    tenants = {metrics.bounded(f"t{i}", "a")[0] for i in range(10 * MAX_LABELS)}
    assert len(tenants) == MAX_LABELS and "(other)" in tenants


def test_key_names_are_unique():
    key = Key(name="a", sha256="0" * 64, tenant="t")
    with pytest.raises(RoadkitError, match="two keys"):
        Keyring((key, key))
    assert json.loads(key.model_dump_json())["tenant"] == "t"
