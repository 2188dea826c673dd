"""`roadkit adapter show | compose | convert | merge`."""

import json

import pytest
import torch

from roadkit.adapter import Adapter
from roadkit.cli import app
from roadkit.errors import RoadkitError


def test_show_describes_an_adapter(runner, folder):
    result = runner.invoke(app, ["adapter", "show", str(folder / "formal"), "--json"])
    facts = json.loads(result.stdout)
    assert facts["variant"] == "road_1" and facts["parameters"] == 64
    expected = Adapter.load(folder / "formal").parameters["model.layers.0.self_attn.q_proj"][0]
    assert facts["modules"]["q_proj"]["mean_angle"] == pytest.approx(float(expected.abs().rad2deg().mean()), rel=1e-4)
    assert "q_proj" in runner.invoke(app, ["adapter", "show", str(folder / "formal")]).stdout


def test_compose_writes_what_the_expression_means(runner, folder, tmp_path):
    target = tmp_path / "both"
    arguments = ["adapter", "compose", "formal*0.5 + german", "--adapters", str(folder), "-o", str(target)]
    assert runner.invoke(app, arguments).exit_code == 0
    formal, german = Adapter.load(folder / "formal"), Adapter.load(folder / "german")
    expected, saved = (formal**0.5).then(german), Adapter.load(target)
    torch.testing.assert_close(saved.a, expected.a)
    torch.testing.assert_close(saved.b, expected.b)


def test_convert_to_the_smallest_variant_keeps_the_function(runner, tmp_path):
    parameters = {"layer": (0.3 * torch.randn(32), 1 + 0.1 * torch.randn(32))}
    original = Adapter.from_parameters(parameters, variant="road_4", group_size=8)
    original.save(tmp_path / "wide")
    result = runner.invoke(app, ["adapter", "convert", str(tmp_path / "wide"), "-o", str(tmp_path / "small"), "--json"])
    assert json.loads(result.stdout)["variant"] == "road_2"
    torch.testing.assert_close(Adapter.load(tmp_path / "small").b, original.b)


def test_merge_writes_a_model_that_transformers_loads(runner, tmp_path, tiny_llama, random_adapter, monkeypatch):
    from transformers import AutoModelForCausalLM

    from roadkit import models, modules

    model = tiny_llama()
    random_adapter(model).save(tmp_path / "adapter")
    adapter = Adapter.load(tmp_path / "adapter")
    ids = torch.arange(3, 12).unsqueeze(0)
    with torch.no_grad(), modules.attached(model, adapter):
        expected = model(ids).logits

    class Tokenizer:
        def save_pretrained(self, folder):
            (folder / "tokenizer.json").write_text("{}")

    monkeypatch.setattr(models, "load_causal", lambda name, dtype: tiny_llama())
    monkeypatch.setattr(models, "load_processor", lambda name: Tokenizer())
    arguments = ["adapter", "merge", str(tmp_path / "adapter"), "--model", "tiny", "-o", str(tmp_path / "merged")]
    assert runner.invoke(app, arguments).exit_code == 0
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)


def test_a_merged_model_is_the_base_in_type_and_tokenizer(runner, tmp_path, tiny_llama, tiny_tokenizer, random_adapter):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny_llama().to(torch.bfloat16).save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    published = AutoTokenizer.from_pretrained(tmp_path / "base")
    random_adapter(tiny_llama()).save(tmp_path / "adapter")
    arguments = ["adapter", "merge", str(tmp_path / "adapter"), "--model", str(tmp_path / "base")]
    for options, dtype in (([], torch.bfloat16), (["--dtype", "float32"], torch.float32)):
        assert runner.invoke(app, [*arguments, *options, "-o", str(tmp_path / "merged")]).exit_code == 0
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").dtype == dtype
        assert AutoTokenizer.from_pretrained(tmp_path / "merged").pad_token == published.pad_token
    (tmp_path / "merged" / "notes.txt").write_text("mine")
    refused = runner.invoke(app, [*arguments, "-o", str(tmp_path / "merged")]).exception
    assert isinstance(refused, RoadkitError) and "notes.txt" in str(refused)
