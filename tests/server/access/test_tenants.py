"""Tenants beside each other: what one may see and use, and what looks as if it were not there."""

import asyncio

from tests.server.process import parts
from tests.server.tenants import BODY, keys


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
