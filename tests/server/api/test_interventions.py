"""Interventions behind HTTP: the engine's answers, one syntax with adapters, and refusals in the client's names."""

import asyncio

import pytest

from roadkit.adapter import Adapter, Base
from roadkit.engine.engine import Engine
from roadkit.engine.request import Request
from roadkit.errors import AdapterError
from roadkit.intervene import Intervention, Positions, Subspace
from roadkit.server.adapters.residents import Residents
from roadkit.server.backends.fit import of_layers
from tests.conftest import random_parameters

PROMPT = "the quick brown fox jumps over the lazy dog"
SITES = ("model.layers.0", "model.layers.1.mlp")


def intervention(positions="last:2", seed=1, sites=SITES, fingerprint="") -> Intervention:
    parameters = {site: random_parameters("road_1", 64, 16, seed=seed + i) for i, site in enumerate(sites)}
    one, two = Subspace.split(64, 2, group_size=16)
    rotation = Adapter.from_parameters(parameters, variant="road_1", group_size=16, base=Base("tiny", fingerprint))
    return Intervention(rotation, Positions.parse(positions), {"one": one, "two": two})


@pytest.fixture(scope="module")
def folders(tmp_path_factory, made):
    """`tasks` and `steer` as folders beside the adapter `formal`, and what they mean."""
    root = tmp_path_factory.mktemp("interventions")
    known = {"tasks": intervention(), "steer": intervention("all", seed=5)}
    for name, one in known.items():
        one.save(root / name)
    return root, {**known, "formal": str(made(1))}


async def complete(http, model: str, **fields) -> tuple[int, dict]:
    body = {"model": model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": True} | fields
    answer = await http.post("/v1/completions", json=body)
    return answer.status_code, answer.json()


def test_requests_intervene_as_in_the_engine(folders, local, made, tiny_llama, tiny_tokenizer):
    root, known = folders
    engine = Engine(tiny_llama(vocab_size=384, max_position_embeddings=1024), tiny_tokenizer, adapters=known)
    names = [
        "tasks",
        "tasks:one",
        "tasks:two*0.5",
        "tasks:one + tasks:two",
        "formal*0.5 - tasks:one",
        "steer",
        "formal",
    ]
    wanted = [
        answer.text
        for answer in engine.generate(
            [Request(prompt=PROMPT, adapter=name, max_tokens=12, ignore_eos=True) for name in [*names, None]]
        )
    ]
    assert len(set(wanted)) >= 6, "the answers are alike, so this test shows little"

    async def ask() -> list[str]:
        async with local(adapters=[str(root), f"formal={made(1)}"], max_batch=8) as (service, http):
            answers = await asyncio.gather(*(complete(http, name) for name in [*names, "tiny"]))
            assert {status for status, _ in answers} == {200}, answers
            assert not any(lease.users for lease in service.residents._leases.values())
            listed = (await http.get("/v1/models")).json()["data"]
            assert {"tasks", "steer", "formal"} <= {item["id"] for item in listed}
            return [body["choices"][0]["text"] for _, body in answers]

    assert asyncio.run(ask()) == wanted


def test_an_expression_is_checked_once(folders, local, made, monkeypatch):
    composed, compose = [], Residents._compose

    def spy(self, factors, singles):
        composed.append([factor.name for factor in factors])
        return compose(self, factors, singles)

    monkeypatch.setattr(Residents, "_compose", spy)

    async def ask() -> list[int]:
        async with local(adapters=[str(folders[0])]) as (_, http):
            names = ["tasks:one*0.5", "tasks:one*0.5", "tasks + steer", "tasks + steer", "tasks:one*0.5"]
            return [(await complete(http, name))[0] for name in names]

    assert asyncio.run(ask()) == [200, 200, 400, 400, 200]
    assert composed == [["tasks:one"], ["tasks", "steer"], ["tasks", "steer"]], "what is refused is refused again"


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [
        ("tasks:thre", 404, "no adapter 'tasks:thre'"),
        ("tasks:on", 404, "did you mean 'tasks:one'"),
        ("formal:one", 404, "no adapter 'formal:one'"),
        ("nobody:one", 404, "nobody:one"),
        ("tasks + steer", 400, "one expression intervenes at last:2 and at all"),
    ],
)
def test_refusals_are_in_the_clients_names(folders, local, made, model, status, words):
    async def ask():
        async with local(adapters=[str(folders[0]), f"formal={made(1)}"]) as (service, http):
            answer = await complete(http, model)
            assert not any(lease.users for lease in service.residents._leases.values())
            return answer

    got, body = asyncio.run(ask())
    assert (got, words in body["error"]["message"]) == (status, True), body


def test_uploads_replace_and_leave(folders, local, tmp_path):
    def files(folder):
        parts = {"config": "intervention.json", "weights": "intervention.safetensors"}
        return {part: (name, (folder / name).read_bytes()) for part, name in parts.items()}

    async def ask():
        registry = tmp_path / "registry"
        async with local(registry=registry) as (_, http):
            first = await http.post(
                "/v1/adapters", data={"name": "up", "pinned": "true"}, files=files(folders[0] / "tasks")
            )
            assert first.status_code == 201, first.text
            one = await complete(http, "up:one")
            second = await http.post("/v1/adapters", data={"name": "up"}, files=files(folders[0] / "steer"))
            assert second.json()["version"] != first.json()["version"]
            two = await complete(http, "up:one")
            frozen = await http.post("/v1/adapters/still/compose", json={"expression": "up:one"})
            assert frozen.status_code == 400 and "cannot be frozen" in frozen.text
            anatomy = await http.get("/v1/studio/anatomy", params={"model": "up"})
            assert anatomy.status_code == 400 and "intervention" in anatomy.text
        async with local(registry=registry) as (_, http):
            again = await complete(http, "up:one")
            assert (await http.delete("/v1/adapters/up")).status_code == 200
            gone = await complete(http, "up:one")
        return [one, two, again, gone]

    one, two, again, gone = asyncio.run(ask())
    assert one[0] == two[0] == 200 and one[1]["choices"] != two[1]["choices"]
    assert again[1]["choices"][0]["text"] == two[1]["choices"][0]["text"]
    assert gone[0] == 404


@pytest.mark.parametrize("change", ["site", "width", "model", "infinite", "large"])
def test_uploads_that_do_not_fit_are_refused(local, tmp_path, change):
    folder = tmp_path / "bad"
    if change == "width":
        parameters = {"model.layers.0": random_parameters("road_1", 32, 16)}
        made = Intervention(
            Adapter.from_parameters(parameters, variant="road_1", group_size=16), Positions.parse("all")
        )
    elif change == "large":
        theta, alpha = random_parameters("road_1", 64, 16)
        rotation = Adapter.from_parameters({"model.layers.0": (theta, alpha + 1e6)}, variant="road_1", group_size=16)
        made = Intervention(rotation, Positions.parse("all"))
    else:
        sites = ("model.layers.7",) if change == "site" else SITES
        made = intervention(sites=sites, fingerprint="another" if change == "model" else "")
    made.save(folder)
    weights = (folder / "intervention.safetensors").read_bytes()
    if change == "infinite":
        weights = weights[:-4] + b"\x00\x00\x80\x7f"

    async def ask():
        async with local(registry=tmp_path / "registry") as (service, http):
            files = {"config": ("c", (folder / "intervention.json").read_bytes()), "weights": ("w", weights)}
            answer = await http.post("/v1/adapters", data={"name": "bad"}, files=files)
            assert not service.catalog.all()
            return answer

    answer = asyncio.run(ask())
    words = {"site": "no module", "width": "32 wide", "model": "another", "infinite": "not finite", "large": "at most"}
    assert answer.status_code == 400 and words[change] in answer.text, answer.text


def test_engines_without_hidden_states_refuse():
    with pytest.raises(AdapterError, match="embedded engine"):
        of_layers(intervention())
