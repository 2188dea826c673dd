"""Base models by name: what is found, refused, loaded, and told apart by its fingerprint."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from roadkit import models
from roadkit.errors import ModelError
from roadkit.modules import width_of


def test_nearly_bundled_name_is_refused_with_the_right_one():
    with pytest.raises(ModelError, match="no base model 'smolm2'; did you mean 'smollm2'"):
        models.resolve("smolm2")


@pytest.mark.parametrize("name", ["gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen3-0.6B"])
def test_hub_ids_pass_through(name):
    assert models.resolve(name) == models.canonical_name(name) == name


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "a/b/c", "two words", ""])
def test_neither_folder_nor_hub_id_is_refused(name):
    with pytest.raises(ModelError, match="no hub id"):
        models.resolve(name)


def test_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json$"):
        models.resolve(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="it is an adapter: name its base model"):
        models.resolve(str(tmp_path))


def test_broken_folder_is_a_model_error(tmp_path, tiny_llama):
    tiny_llama().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        models.load_causal(str(tmp_path))


def test_folder_loads_as_saved(tmp_path, tiny_llama, monkeypatch):
    import torch

    tiny_llama().save_pretrained(tmp_path / "mine")
    loaded = models.load_causal(str(tmp_path / "mine"), dtype="bfloat16")
    assert not loaded.training
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.lm_head.weight, tiny_llama().lm_head.weight.bfloat16())
    monkeypatch.chdir(tmp_path)
    assert models.canonical_name("mine") == str(tmp_path / "mine")


def test_encoder_is_no_language_model(tmp_path, tiny_bert):
    tiny_bert().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="BertModel, which has no language-model head"):
        models.load_causal(str(tmp_path))
    classifier = models.load_encoder(str(tmp_path), num_labels=3).get_submodule("classifier")
    assert width_of(classifier) == 3


def test_bundled_models_have_one_name_everywhere():
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert models.canonical_name("smollm2") == name
    assert models.canonical_name("/home/other/.cache/roadkit/models/smollm2-0123456789ab") == name
    assert models.canonical_name("/home/other/models/smollm2-large") != name
    assert models.canonical_name("minilm") == "sentence-transformers/all-MiniLM-L6-v2"


# ---- fingerprints ---------------------------------------------------------------------------------------------------


def test_fingerprint_changes_with_structure_only(tiny_llama):
    config = tiny_llama().config
    same = models.config_fingerprint(config)
    assert models.config_fingerprint(tiny_llama(seed=1, max_position_embeddings=99, eos_token_id=7).config) == same
    changes = [{"hidden_size": 128}, {"num_hidden_layers": 3}, {"num_key_value_heads": 4}, {"vocab_size": 257}]
    changes += [{"head_dim": 32}, {"tie_word_embeddings": True}, {"rope_parameters": {"rope_theta": 5e5}}]
    others = {models.config_fingerprint(type(config)(**config.to_diff_dict() | change)) for change in changes}
    assert len(others | {same}) == len(changes) + 1


def test_fingerprint_reads_older_spellings(tiny_llama, tiny_gemma):
    llama = tiny_llama().config
    fields = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    fields += ("num_key_value_heads", "vocab_size", "tie_word_embeddings")
    older = {field: getattr(llama, field) for field in fields}  # transformers 4: no head_dim, rope_theta on its own
    assert models.config_fingerprint(older | {"rope_theta": 10000}) == models.config_fingerprint(llama)
    gemma = tiny_gemma().config
    older = {field: getattr(gemma, field) for field in fields} | {"head_dim": 32}
    assert models.config_fingerprint(
        older | {"rope_theta": 1_000_000, "rope_local_base_freq": 10_000}
    ) == models.config_fingerprint(gemma)


def test_fingerprint_reads_an_unsaid_number_of_key_value_heads():
    said = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 4}
    assert models.config_fingerprint(said) == models.config_fingerprint(said | {"num_key_value_heads": None})


def test_fingerprint_reads_gpt2_names(tiny_gpt2):
    raw = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": None, "vocab_size": 256}
    assert models.config_fingerprint(raw) == models.config_fingerprint(tiny_gpt2().config)


def test_fingerprint_includes_nested_configurations(tiny_gemma):
    from transformers import Gemma3Config

    text = tiny_gemma().config.to_dict()
    one, other = Gemma3Config(text_config=text), Gemma3Config(text_config=text | {"hidden_size": 128})
    assert models.config_fingerprint(one) != models.config_fingerprint(other)


# ---- the real models ------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    def refuse(self, address):
        raise AssertionError(f"connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.mark.model
def test_smollm2_knows_the_capital_of_france(no_network):
    model: Any = models.load_causal("smollm2")
    tokenizer = models.load_tokenizer("smollm2")
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    assert "Paris" in tokenizer.decode(model.generate(**prompt, max_new_tokens=5, do_sample=False)[0])
    assert models.config_fingerprint(model.config) == "222f930e315b6053"  # adapters on people's disks carry it
    assert models.canonical_name(str(model.config.name_or_path)) == "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.model
def test_smollm2_ends_its_turn(no_network):
    model: Any = models.load_causal("smollm2")
    tokenizer = models.load_tokenizer("smollm2")
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == 2
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt: Any = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=30, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.model
def test_minilm_encodes_and_classifies(no_network):
    encoder, tokenizer = models.load_encoder("minilm"), models.load_tokenizer("minilm")
    assert encoder(**tokenizer("a sentence", return_tensors="pt")).last_hidden_state.shape[-1] == 384
    classifier = models.load_encoder("minilm", num_labels=2)
    assert models.config_fingerprint(classifier.config) == models.config_fingerprint(encoder.config)


def test_a_device_that_is_not_there_is_named():
    assert models.best_device("cpu") == "cpu"
    for name in ("gpu", "cuda:7"):
        with pytest.raises(ModelError, match=f"there is no device '{name}' here: "):
            models.best_device(name)
