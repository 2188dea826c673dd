"""The Studio's files and routes, without a browser."""

import asyncio
import functools
import json
import math
import re
from importlib.resources import files

import pytest
import torch

from roadkit import rotation
from roadkit.adapter import Adapter
from roadkit.describe import anatomy, pairs
from roadkit.errors import AdapterError, AlgebraError
from roadkit.server.access.keys import new_key
from roadkit.server.api.requests import CompletionRequest
from roadkit.server.studio.comparison import Comparison

STATIC = files("roadkit.server.studio").joinpath("static")
LAYER = "model.layers.1.self_attn.q_proj"


def in_loop(test):
    """Run an async test in a loop of its own."""

    @functools.wraps(test)
    def run(*arguments, **fixtures):
        asyncio.run(test(*arguments, **fixtures))

    return run


async def streamed(http, requests):
    """The events of one comparison, the last of which is the batch's."""
    async with http.stream("POST", "/v1/studio/answers", json={"requests": requests}) as response:
        assert response.status_code == 200, await response.aread()
        lines = [line async for line in response.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def asked(model, **options):
    body = {"model": model, "prompt": "the quick brown", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    return body | options


def answer_of(events, column):
    return "".join(event["text"] for event in events if event.get("column") == column and "text" in event)


def test_every_file_is_served_under_a_strict_policy(server):
    names = {file.name for file in STATIC.iterdir()}
    assert {"index.html", "app.js", "style.css"} <= names
    for path in ["/studio", *(f"/studio/{name}" for name in names)]:
        answer = server.http.get(path)
        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
        assert "require-trusted-types-for 'script'" in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = server.http.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304 and not again.content
    for path in ("/studio/nothing.js", "/studio/..%2f__init__.py", "/studio/../pages.py", "/studio/routes.py"):
        assert server.http.get(path).status_code == 404


def test_the_page_needs_nothing_from_elsewhere_and_no_inline_code():
    for file in STATIC.iterdir():
        text = file.read_text()
        assert not re.search(r"https?://(?!www\.w3\.org)", text), file.name
        for forbidden in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Storage",
            "cookie",
        ):
            assert forbidden not in text, f"{file.name}: {forbidden}"
    page = STATIC.joinpath("index.html").read_text()
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", page)


@in_loop
async def test_with_keys_the_page_is_open_and_nothing_else(local, made):
    text, key = new_key("ci", tenant="acme")
    async with local(keys=[key], adapters=[f"quick={made(1)}"]) as (_, http):
        assert (await http.get("/studio")).status_code == 200
        for path in ("session", "adapters", "anatomy?model=quick", f"layer?model=quick&layer={LAYER}", "stats"):
            assert (await http.get(f"/v1/studio/{path}")).status_code == 401
        assert (await http.post("/v1/studio/answers", json={"requests": [asked("tiny")]})).status_code == 401
        http.headers["Authorization"] = f"Bearer {text}"
        session = (await http.get("/v1/studio/session")).json()
        assert session["keyed"] and not session["admin"] and not session["uploads"]
        assert (await http.get("/v1/studio/stats")).status_code == 404  # the load of all tenants is an admin's
        assert (await http.get("/v1/studio/anatomy?model=quick")).status_code == 200


@in_loop
async def test_a_link_to_the_page_opens_from_anywhere_but_the_api_stays_closed(local):
    async with local() as (_, http):
        followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        assert (await http.get("/studio", headers=followed)).status_code == 200
        assert (await http.get("/v1/studio/session", headers=followed)).status_code == 403
        assert (await http.get("/studio/app.js", headers={"Sec-Fetch-Site": "cross-site"})).status_code == 403
        assert (await http.get("/studio", headers={"Host": "evil.example"})).status_code == 403


@in_loop
async def test_eight_expressions_are_one_batch_and_each_answer_is_its_own(local, made):
    adapters = [f"quick={made(1)}", f"lazy={made(2)}"]
    models = ["tiny", "quick", "lazy", "quick*0.5", "-lazy", "quick + lazy", "quick*0.3 - lazy*0.2", "lazy*1.5"]
    async with local(adapters=adapters, max_batch=8) as (service, http):
        alone = []
        for model in models:
            answer = await http.post("/v1/completions", json=asked(model))
            alone.append(answer.json()["choices"][0]["text"])
        before = service.backend.stats()
        events = await streamed(http, [asked(model) for model in models])
        assert [answer_of(events, column) for column in range(8)] == alone
        batch = events[-1]["batch"]
        assert batch["peak"] == 8 and batch["tokens"] == 8 * 12
        assert service.backend.stats().tokens - before.tokens == 8 * 12
        assert batch["steps"] < 4 * 12, "eight answers of twelve tokens were not computed together"
        ends = [event for event in events if "finish_reason" in event]
        assert len(ends) == 8 and all(event["first_token_seconds"] > 0 for event in ends)


@in_loop
async def test_one_wrong_column_fails_alone(local, made):
    async with local(adapters=[f"quick={made(1)}"]) as (_, http):
        hostile = "<img src=x onerror=alert(1)>"
        events = await streamed(http, [asked("quick"), asked("nothing"), asked(hostile), asked("tiny", n=2)])
        errors = {event["column"]: event["error"] for event in events if "error" in event}
        assert errors.keys() == {1, 2, 3} and "no adapter 'nothing'" in errors[1] and "n is 2" in errors[3]
        assert answer_of(events, 0)
        assert (await http.post("/v1/studio/answers", json={"requests": []})).status_code == 400
        assert (await http.post("/v1/studio/answers", json={"requests": [asked("tiny")] * 9})).status_code == 400


@in_loop
async def test_a_client_that_goes_away_frees_every_row(local):
    async with local(max_batch=4) as (service, http):
        key = service.keyring.caller(None)
        bodies = [CompletionRequest(**asked("tiny", max_tokens=900)) for _ in range(4)]
        comparison = await Comparison.begin(service, service.backend, key, bodies)
        async for _ in comparison.events():
            break
        comparison.close()
        for _ in range(200):
            if not service.backend.stats().running and not service.traffic.running:
                break
            await asyncio.sleep(0.05)
        assert not service.backend.stats().running and not service.traffic.running


@in_loop
async def test_the_table_says_what_an_adapter_is(local, made, tmp_path):
    folder = made(1)
    async with local(adapters=[f"quick={folder}"], registry=tmp_path / "registry") as (_, http):
        files_ = {
            "config": (folder / "adapter_config.json").read_bytes(),
            "weights": (folder / "adapter_model.safetensors").read_bytes(),
        }
        assert (await http.post("/v1/adapters", data={"name": "mine"}, files=files_)).status_code == 201
        await http.post("/v1/completions", json=asked("mine"))
        mine, quick = (await http.get("/v1/studio/adapters")).json()["data"]
        adapter = Adapter.load(folder)
        expected = {
            "variant": "road_1",
            "group_size": 16,
            "layers": len(adapter.layout.layers),
            "parameters": sum(theta.numel() + alpha.numel() for theta, alpha in adapter.parameters.values()),
            "bytes": (folder / "adapter_model.safetensors").stat().st_size,
        }
        for row in (mine, quick):
            assert {field: row[field] for field in expected} == expected
        assert mine["resident"] and mine["deletable"] and mine["answers"] == 1
        assert not quick["resident"] and not quick["deletable"] and quick["answers"] == 0
        assert str(folder) not in json.dumps([mine, quick])
        stats = (await http.get("/v1/studio/stats")).json()
        assert stats["adapters"]["mine"] == {"answers": 1, "tokens": 12} and stats["max_batch"] == 4


@in_loop
async def test_anatomy_and_layer_of_an_expression(local, made):
    async with local(adapters=[f"quick={made(1)}"]) as (_, http):
        whole = (await http.get("/v1/studio/anatomy", params={"model": "quick"})).json()
        half = (await http.get("/v1/studio/anatomy", params={"model": "quick*0.5"})).json()
        for one, other in zip(whole["cells"], half["cells"], strict=True):
            assert other["mean_log_scale"] == pytest.approx(one["mean_log_scale"] / 2, rel=1e-4)
        layer = {"model": "quick", "layer": LAYER, "strength": 0.5}
        blocks = (await http.get("/v1/studio/layer", params=layer)).json()["blocks"]
        assert blocks == pairs(Adapter.load(made(1)), LAYER, strength=0.5)["blocks"]
        for wrong in ({"layer": "model.nothing"}, {"strength": 99}, {"strength": "nan"}, {"model": "tiny"}):
            assert (await http.get("/v1/studio/layer", params=layer | wrong)).status_code == 400
        assert (await http.get("/v1/studio/layer", params=layer | {"model": "nothing"})).status_code == 404


@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_pairs_are_the_blocks_that_rotate(tiny_llama, random_adapter, close, variant):
    adapter = random_adapter(tiny_llama(), 3, variant=variant, group_size=8)
    found = pairs(adapter, LAYER)
    assert found["rotations"] == (variant == "road_1")
    a, b, group_size = adapter.layer(LAYER)
    h = torch.randn(len(a))
    expected = rotation.rotate(h, a, b, group_size)
    for pair, (a_lo, b_lo, b_hi, a_hi) in enumerate(found["blocks"]):
        lo = pair // 4 * 8 + pair % 4
        assert float(expected[lo]) == pytest.approx(float(a_lo * h[lo] + b_lo * h[lo + 4]), abs=1e-4)
        assert float(expected[lo + 4]) == pytest.approx(float(b_hi * h[lo] + a_hi * h[lo + 4]), abs=1e-4)


def test_anatomy_places_every_layer(tiny_llama, random_adapter):
    adapter = random_adapter(tiny_llama(), 3)
    found = anatomy(adapter)
    assert len(found["cells"]) == len(adapter.layout.layers)
    cell = next(cell for cell in found["cells"] if cell["layer"] == LAYER)
    theta, alpha = adapter.parameters[LAYER]
    assert (cell["block"], cell["module"]) == (1, "self_attn.q_proj")
    wrapped = torch.atan2(theta.sin() * alpha.sign(), theta.cos() * alpha.sign())
    assert cell["mean_angle"] == pytest.approx(math.degrees(float(wrapped.abs().mean())), rel=1e-3)
    assert cell["mean_log_scale"] == pytest.approx(float(alpha.abs().log().abs().mean()), rel=1e-3)
    odd = Adapter.from_parameters({"head": (torch.zeros(4), torch.ones(4))}, variant="road_1", group_size=2)
    assert anatomy(odd)["cells"][0]["block"] is None and anatomy(odd)["cells"][0]["mean_angle"] == 0


def test_pairs_names_what_is_wrong(tiny_llama, random_adapter):
    adapter = random_adapter(tiny_llama(), 3)
    with pytest.raises(AdapterError, match="did you mean 'model.layers.1.self_attn.q_proj'"):
        pairs(adapter, "model.layers.1.self_attn.q_pro")
    flat = Adapter.from_parameters({"head": (torch.zeros(4), torch.zeros(4))}, variant="road_1", group_size=2)
    with pytest.raises(AlgebraError, match="head, pair 0"):
        pairs(flat, "head", strength=-1)
