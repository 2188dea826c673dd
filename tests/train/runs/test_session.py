"""Whole runs on a tiny model: what they write, what they leave alone, and how they fail."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlavaConfig, TrainingArguments

import roadkit as rk
from roadkit.adapter import Base
from roadkit.analysis.geometry import load_checkpoints
from roadkit.errors import RecipeError
from roadkit.train import Recipe, run
from roadkit.train.runs.callbacks import Run, StepGuard
from roadkit.train.runs.checkpoints import complete_checkpoints
from roadkit.train.runs.trainer import _arguments


@pytest.fixture
def loaded(llama_folder):
    from roadkit import models

    return models.load_causal(llama_folder), models.load_tokenizer(llama_folder)


def test_run_writes_an_adapter_that_lowers_the_loss(make_recipe):
    result = run(make_recipe(max_steps=12, eval_fraction=0.2))
    losses = result.metrics
    assert result.steps == 12
    assert losses["loss"] < losses["train_loss"]
    adapter = rk.Adapter.load(result.adapter)
    assert adapter.variant == "road_1"
    assert adapter.base.fingerprint
    assert not (adapter.a == 1).all()
    facts = json.loads((result.adapter / "training.json").read_text())
    assert facts["steps"] == 12
    assert facts["metrics"]["eval_loss"] == losses["eval_loss"]


def test_adapter_gives_the_same_logits_through_roadkit_and_peft(make_recipe, loaded):
    result = run(make_recipe(variant="road_2"))
    model, tokenizer = loaded
    inputs = tokenizer("what is 3?", return_tensors="pt")
    with torch.no_grad():
        with rk.attached(model, rk.Adapter.load(result.adapter)):
            ours = model(**inputs).logits
        theirs = PeftModel.from_pretrained(model, str(result.adapter))(**inputs).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)  # two kernels, two layers


def test_loaded_model_is_left_exactly_as_it_was(make_recipe, loaded):
    model, tokenizer = loaded
    calls = []
    handle = model.model.layers[0].register_forward_hook(lambda *args: calls.append(1))
    modules, weights = list(model.named_modules()), {k: v.clone() for k, v in model.state_dict().items()}
    state, config = dict(vars(model)), copy.deepcopy(model.config.to_dict())
    generation = copy.deepcopy(model.generation_config.to_dict())
    run(make_recipe(gradient_checkpointing=True), model=model, tokenizer=tokenizer)
    assert list(model.named_modules()) == modules
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert dict(vars(model)) == state
    assert model.config.to_dict() == config
    assert model.generation_config.to_dict() == generation
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    handle.remove()  # a hook from before still goes the way it came
    calls.clear()
    model(torch.ones(1, 2, dtype=torch.long))
    assert not calls


def test_loaded_model_and_own_loading_train_alike(make_recipe, loaded, tmp_path):
    model, tokenizer = loaded
    first = run(make_recipe(output=str(tmp_path / "a")), model=model, tokenizer=tokenizer)
    again = run(make_recipe(output=str(tmp_path / "b")), model=model, tokenizer=tokenizer)
    alone = run(make_recipe(output=str(tmp_path / "c")))
    assert rk.Adapter.load(first.adapter) == rk.Adapter.load(again.adapter) == rk.Adapter.load(alone.adapter)


def test_model_is_restored_after_an_error(make_recipe, loaded):
    model, tokenizer = loaded
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(RecipeError, match="loss became"):
        run(make_recipe(learning_rate=1e30, max_grad_norm=0, warmup=0), model=model, tokenizer=tokenizer)
    assert [name for name, _ in model.named_modules()] == names


def test_progress_is_reported_after_every_step_and_evaluation(make_recipe):
    reports = []
    run(make_recipe(eval_fraction=0.2, eval_steps=2), progress=reports.append)
    steps = [report.step for report in reports if not report.metrics]
    assert steps == [1, 2, 3, 4]
    assert all(report.num_steps == 4 and report.tokens_per_second > 0 for report in reports)
    assert [report.step for report in reports if report.metrics] == [2, 4, 4]
    assert reports[-1].metrics["loss"] > 0


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(make_recipe, monkeypatch):
    from roadkit.train.runs import trainer

    real, seen = trainer.answer_loss, []

    def poisoned(*args):
        seen.append(1)
        loss, count = real(*args)
        return (loss * float("nan") if len(seen) == 4 else loss), count

    monkeypatch.setattr(trainer, "answer_loss", poisoned)
    recipe = make_recipe(save_steps=2, max_steps=6)
    with pytest.raises(RecipeError, match=r"the loss became nan at step 4, learning rate 0\.0\d+.*checkpoint-2"):
        run(recipe)
    (kept,) = complete_checkpoints(recipe.run_dir)
    assert torch.isfinite(rk.Adapter.load(kept).a).all()
    assert not Path(recipe.output).exists()


def test_best_checkpoint_is_the_one_written(make_recipe):
    recipe = make_recipe(
        eval_fraction=0.25, eval_steps=2, max_steps=8, best="loss", learning_rate=0.5, warmup=0, keep_checkpoints=True
    )
    reports = []
    result = run(recipe, progress=reports.append)
    held_out = [report.metrics["loss"] for report in reports if report.metrics]
    assert result.metrics["eval_loss"] == pytest.approx(min(held_out))
    best = recipe.run_dir / f"checkpoint-{2 * (held_out.index(min(held_out)) + 1)}"
    assert rk.Adapter.load(best) == rk.Adapter.load(result.adapter)


def test_checkpoints_go_when_the_run_ends(make_recipe):
    recipe = make_recipe(save_steps=2)
    run(recipe)
    assert not recipe.run_dir.exists()


def test_every_checkpoint_is_kept_for_a_trajectory(make_recipe):
    recipe = make_recipe(save_steps=1, max_steps=4, keep_checkpoints=True)
    run(recipe)
    assert list(load_checkpoints(recipe.run_dir)) == [1, 2, 3, 4]


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"batch_size": 2, "gradient_accumulation": 2}])
def test_memory_savers_train_alike(make_recipe, tmp_path, changes, close):
    plain = run(make_recipe(max_steps=3)).adapter
    other = run(make_recipe(max_steps=3, output=str(tmp_path / "other"), **changes)).adapter
    close(rk.Adapter.load(other).a, rk.Adapter.load(plain).a)


def test_bf16_trains_a_float32_adapter(make_recipe):
    result = run(make_recipe(bf16=True))
    theta = next(iter(rk.Adapter.load(result.adapter).parameters.values()))[0]
    assert theta.dtype == torch.float32
    assert theta.abs().max() > 0


def test_heads_of_a_16_bit_run_are_trained_in_32(bert_folder, write_rows, tmp_path):
    rows = [{"text": ("good", "bad")[i % 2], "label": ("no", "yes")[i % 2]} for i in range(8)]
    recipe = Recipe(
        model=bert_folder, data=write_rows(rows), output=str(tmp_path / "a"), task="classification", group_size=16,
        max_steps=2, eval_fraction=0.25, bf16=True,
    )  # fmt: skip
    heads = rk.Adapter.load(run(recipe).adapter).heads
    assert heads and {tensor.dtype for head in heads.values() for tensor in head.values()} == {torch.float32}


def test_packing_in_16_bits_with_a_module_trained_whole(make_recipe):
    result = run(make_recipe(bf16=True, packing=True, max_length=128, modules_to_save=["norm"], max_steps=2))
    ((_, head),) = rk.Adapter.load(result.adapter).heads.items()
    assert head["weight"].dtype == torch.float32 and not torch.equal(head["weight"], torch.ones_like(head["weight"]))


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_accumulated_batches_of_labels_have_the_loss_of_a_whole_one(bert_folder, write_rows, tmp_path, task):
    rows = [{"text": ("good", "bad")[i % 2] * (1 + i % 3), "label": i % 2} for i in range(8)]
    values = {"model": bert_folder, "data": write_rows(rows), "task": task, "group_size": 16, "max_steps": 2}
    whole = run(Recipe(output=str(tmp_path / "whole"), batch_size=4, **values))
    parts = run(Recipe(output=str(tmp_path / "parts"), batch_size=2, gradient_accumulation=2, **values))
    assert parts.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"], rel=0.2)  # other dropout


def test_one_process_uses_one_of_several_gpus(make_recipe, loaded):
    class OfFour(TrainingArguments):
        def __post_init__(self):
            super().__post_init__()
            self._n_gpu = 4

    made = _arguments(make_recipe(batch_size=2), OfFour, True, loaded[0])
    assert (made.n_gpu, made.train_batch_size) == (1, 2)


def test_only_models_with_a_vision_tower_may_leave_parameters_unused(make_recipe):
    for config, unused in ((LlavaConfig(), True), (LlamaConfig(), False)):
        made = _arguments(make_recipe(), TrainingArguments, True, SimpleNamespace(config=config))
        assert made.ddp_find_unused_parameters is unused


@pytest.mark.parametrize(("scaler", "stops"), [(None, True), ("accelerate's", False)])
def test_an_overflow_that_a_scaler_expects_does_not_stop(make_recipe, tmp_path, scaler, stops):
    model = torch.nn.Linear(1, 1)
    model.weight.grad = torch.tensor([[float("inf")]])
    guard = StepGuard(
        Run(make_recipe(), Base("tiny", ""), {}, last_loss=1.0),
        SimpleNamespace(accelerator=SimpleNamespace(scaler=scaler)),
    )
    rates = SimpleNamespace(param_groups=[{"lr": 1.0, "params": [model.weight]}])
    told = (SimpleNamespace(world_size=1), SimpleNamespace(global_step=0), None)
    if stops:
        with pytest.raises(RecipeError, match="the gradient became inf at step 1"):
            guard.on_pre_optimizer_step(*told, model=model, optimizer=rates)
    else:
        guard.on_pre_optimizer_step(*told, model=model, optimizer=rates)


def test_truncation_is_counted(make_recipe, caplog):
    with caplog.at_level(logging.WARNING):
        result = run(make_recipe(max_length=40))
    assert 0 < result.truncated < 12
    assert result.dropped > 0
    assert f"{result.truncated} of" in caplog.text


def test_too_long_for_the_model_is_refused(make_recipe):
    with pytest.raises(RecipeError, match="max_length 600 exceeds the 512 tokens"):
        run(make_recipe(max_length=600))


def test_model_without_tokenizer_is_refused(make_recipe, loaded):
    with pytest.raises(RecipeError, match="model and tokenizer together"):
        run(make_recipe(), model=loaded[0])


def test_tensorboard_needs_its_package(make_recipe, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="pip install tensorboard"):
        run(make_recipe(tensorboard=True))


def test_full_disk_leaves_the_old_adapter(make_recipe, monkeypatch):
    recipe = make_recipe(max_steps=1)
    run(recipe)
    before = (Path(recipe.output) / "adapter_model.safetensors").read_bytes()

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RecipeError, match="No space left on device; what was there before is untouched"):
        run(recipe)
    assert (Path(recipe.output) / "adapter_model.safetensors").read_bytes() == before
    assert list(Path(recipe.output).parent.glob(".adapter*")) == []


def test_full_disk_at_a_checkpoint_keeps_the_earlier_one(make_recipe, monkeypatch):
    real = torch.save

    def full(value, path, *args, **kwargs):
        if "checkpoint-3" in str(path):
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
        return real(value, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    recipe = make_recipe(save_steps=1)
    with pytest.raises(RecipeError, match=r"no checkpoint could be written at step 3: .*the last complete one is .*-2"):
        run(recipe)
    monkeypatch.undo()
    assert run(Recipe(**recipe.model_dump() | {"resume": True})).resumed_from == 2


def test_conv1d_layers_train(make_recipe, tiny_gpt2):
    from tests.train.conftest import VOCABULARY, make_tokenizer

    model = tiny_gpt2(vocab_size=VOCABULARY)
    result = run(make_recipe(max_steps=12), model=model, tokenizer=make_tokenizer())
    assert result.metrics["loss"] < result.metrics["train_loss"]
    assert "transformer.h.0.attn.c_attn" in rk.Adapter.load(result.adapter).layout.layers


def test_card_tells_what_was_done(make_recipe):
    result = run(make_recipe())
    text = (result.adapter / "README.md").read_text()
    assert text.startswith("---\nbase_model: ")
    assert f"{result.trainable:,} trained parameters" in text
    assert "learning_rate: 0.02" in text


def test_output_that_holds_other_things_is_refused_before_training(make_recipe, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    with pytest.raises(RecipeError, match=r"holds other things \(thesis\.txt\); name a new folder"):
        run(make_recipe(output=str(tmp_path / "home")))
    with pytest.raises(RecipeError, match="is a file"):
        run(make_recipe(output=str(tmp_path / "home" / "thesis.txt")))
