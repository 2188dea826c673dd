"""The paper's multimodal recipe on a tiny LLaVA: RoAd with a LoRA around it, on the language part alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import roadkit as rk
from roadkit import models
from roadkit.train import load_pair, run
from roadkit.train.model.borrowed import borrowed
from roadkit.train.model.targets import target_layers
from roadkit.train.model.trainable import make_trainable
from tests.train.conftest import VOCABULARY, make_tokenizer

IMAGE = 260


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory) -> str:
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**small, image_size=28, patch_size=14),
        text_config=LlamaConfig(**small, vocab_size=VOCABULARY, pad_token_id=0),
        image_token_index=IMAGE,
        image_seq_length=4,
    )
    folder = tmp_path_factory.mktemp("base") / "llava"
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def seen() -> dict[str, torch.Tensor]:
    """Two pictures of four patches, each followed by words."""
    ids = torch.tensor([[1, *[IMAGE] * 4, *range(20, 30)], [1, *[IMAGE] * 4, *range(40, 50)]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(2, 3, 28, 28)}


def test_language_part_trains_on_pictures_and_comes_back_from_disk(llava_folder, make_recipe, seen):
    model = models.load_causal(llava_folder)
    recipe = make_recipe(target_modules=["language_model"], lora={"r": 2})
    labels = seen["input_ids"].masked_fill(seen["input_ids"] == IMAGE, -100)
    with borrowed(model):
        tuned = make_trainable(model, recipe)
        trained = {name: parameter for name, parameter in tuned.named_parameters() if parameter.requires_grad}
        assert all("language_model" in name for name in trained)
        assert len(trained) == 2 * 7 * 4  # layers of two blocks: angles, scales, and two halves of the LoRA
        optimizer = torch.optim.AdamW(trained.values(), lr=5e-2)
        losses = []
        for _ in range(40):
            loss = tuned(**seen, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0] - 0.2


def test_run_saves_a_pair_that_answers_as_merged(llava_folder, make_recipe, seen):
    result = run(make_recipe(model=llava_folder, target_modules=["language_model"], lora={"r": 2}, max_steps=6))
    model = models.load_causal(llava_folder)
    with torch.no_grad():
        base = model(**seen).logits
        with borrowed(model):
            paired = load_pair(model, result.adapter)(**seen).logits
        assert not torch.allclose(paired, base, atol=1e-3)
        rk.merge(model, rk.Adapter.load(result.adapter / "road"))
        merged = PeftModel.from_pretrained(model, str(result.adapter / "lora")).merge_and_unload()
        torch.testing.assert_close(merged(**seen).logits, paired, rtol=1e-4, atol=1e-5)


def test_pictures_of_a_mixed_batch_are_read_by_each_rows_adapter(llava_folder, random_adapter, seen, close):
    model = models.load_causal(llava_folder)
    adapters = {name: random_adapter(model, seed=i, layers=("language_model",)) for i, name in enumerate("ab")}
    with torch.no_grad():
        bank = rk.Bank(model, adapters)
        with bank.rows(["b", None]):
            mixed = model(**seen).logits
        bank.close()
        close(mixed[1:], model(**{key: value[1:] for key, value in seen.items()}).logits)
        with rk.attached(model, adapters["b"]):
            close(mixed[:1], model(**{key: value[:1] for key, value in seen.items()}).logits)


def test_a_module_stands_for_the_layers_inside_it(llava_folder, make_recipe):
    model = models.load_causal(llava_folder)
    chosen = target_layers(model, make_recipe(target_modules=["language_model.layers.1", "fc1"]))
    assert {name.split(".")[1] for name in chosen} == {"language_model", "vision_tower"}
    assert len([name for name in chosen if ".layers.1." in name and "language_model" in name]) == 7
    assert all(".layers.1." in name or name.endswith("fc1") for name in chosen)
