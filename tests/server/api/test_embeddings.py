"""Encoders: embeddings and labels, each request with its own adapter and head."""

import asyncio
import base64
import dataclasses

import httpx
import numpy
import pytest
import torch

from roadkit.server.access.keys import Keyring
from roadkit.server.app import build
from roadkit.server.backends.encoder import EncoderBackend
from roadkit.server.settings import ServerSettings

TEXTS = ["the quick brown fox", "over", "thousands of adapters in one batch"]


@pytest.fixture
def serve(tiny_bert, tiny_tokenizer, random_adapter, tmp_path):
    """`serve(run, num_labels=…)`: awaits run(http, model) beside an encoder with the adapters `mine` and `headed`."""

    def make(run, num_labels=None, own_head=True):
        model = tiny_bert(vocab_size=384, num_labels=num_labels)
        reference = tiny_bert(vocab_size=384, num_labels=num_labels)
        adapter = random_adapter(model, 1, layers=("query", "dense"))
        adapter.save(tmp_path / "mine")
        folders = [f"mine={tmp_path / 'mine'}"]
        if num_labels:
            head = {"classifier": {"weight": torch.randn(5, 64), "bias": torch.randn(5)}}
            dataclasses.replace(adapter, heads=head).save(tmp_path / "headed")
            folders.append(f"headed={tmp_path / 'headed'}")
        backend = EncoderBackend(model, tiny_tokenizer, max_batch=4, own_head=own_head)
        app = build(ServerSettings(model="tiny"), Keyring(), backend, adapters=folders)

        async def main():
            async with app.router.lifespan_context(app):
                transport = httpx.ASGITransport(app, raise_app_exceptions=False)
                async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                    await run(http, reference, adapter)

        asyncio.run(main())

    return make


def test_embeddings_are_the_models_own(serve, tiny_tokenizer, close):
    from roadkit import attached

    async def run(http, model, adapter):
        answers = {}
        for name in ("tiny", "mine"):
            answer = await http.post("/v1/embeddings", json={"model": name, "input": TEXTS})
            assert answer.status_code == 200, answer.text
            answers[name] = torch.tensor([one["embedding"] for one in answer.json()["data"]])
        packed = await http.post("/v1/embeddings", json={"model": "mine", "input": TEXTS, "encoding_format": "base64"})
        vector = numpy.frombuffer(base64.b64decode(packed.json()["data"][1]["embedding"]), dtype="<f4")
        close(torch.tensor(vector), answers["mine"][1])

        def alone(text):
            ids = torch.tensor([tiny_tokenizer(text)["input_ids"]])
            with torch.no_grad():
                return torch.nn.functional.normalize(model(ids).last_hidden_state.mean(dim=1), dim=-1)[0]

        close(answers["tiny"], torch.stack([alone(text) for text in TEXTS]))
        with attached(model, adapter):
            close(answers["mine"], torch.stack([alone(text) for text in TEXTS]))
        page, tokens = (await http.get("/metrics")).text, sum(len(tiny_tokenizer(text)["input_ids"]) for text in TEXTS)
        assert f'roadkit_prompt_tokens_total{{adapter="tiny",tenant="local"}} {float(tokens)}' in page
        assert 'roadkit_answers_total{adapter="mine",tenant="local"} 6.0' in page
        assert (await http.post("/v1/embeddings", json={"model": "no", "input": "x"})).status_code == 404
        assert (await http.post("/v1/embeddings", json={"model": "tiny", "input": []})).status_code == 400
        assert (await http.post("/v1/embeddings", json={"model": "tiny", "input": "x" * 2000})).status_code == 400
        assert (await http.post("/v1/embeddings", json={"model": "tiny", "input": [[999999]]})).status_code == 400
        assert (await http.post("/v1/classify", json={"model": "tiny", "input": "x"})).status_code == 400
        assert (await http.post("/v1/completions", json={"model": "tiny", "prompt": "x"})).status_code == 404

    serve(run)


def test_each_request_has_its_own_head(serve):
    async def run(http, model, adapter):
        names = ["tiny", "mine", "headed", "headed*0.5"]
        asked = [http.post("/v1/classify", json={"model": name, "input": TEXTS}) for name in names]
        answers = [answer.json() for answer in await asyncio.gather(*asked)]
        assert [answer["data"][0]["num_classes"] for answer in answers] == [3, 3, 5, 5]
        for answer in answers:
            assert all(sum(one["probs"]) == pytest.approx(1) for one in answer["data"])
        assert answers[0]["data"][0]["probs"] != answers[1]["data"][0]["probs"]

    serve(run, num_labels=3)


def test_a_head_that_nobody_trained_is_not_used(serve):
    async def run(http, model, adapter):
        refused = await http.post("/v1/classify", json={"model": "mine", "input": "x"})
        assert refused.status_code == 400 and "no head" in refused.json()["error"]["message"]
        assert (await http.post("/v1/classify", json={"model": "headed", "input": "x"})).status_code == 200

    serve(run, num_labels=2, own_head=False)
