"""A run that is killed goes on where it stopped and ends in the same bits; one that is not the same is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import roadkit as rk
from roadkit.analysis.geometry import load_checkpoints
from roadkit.errors import RecipeError
from roadkit.train import Recipe, run
from roadkit.train.trainers.checkpoints import MARK, complete_checkpoints, last_complete, resume_or_start_over

KILLED = """
import json, os, signal, sys, torch
torch.set_num_threads(2)
from roadkit.train import Recipe, run

def kill(report):
    if report.step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

run(Recipe(**json.loads(sys.argv[1])), progress=kill)
"""


class Stop(Exception):
    pass


def stop_at(step: int):
    def check(report):
        if report.step == step and not report.metrics:
            raise Stop

    return check


def assert_same_bits(one: Path, other: Path) -> None:
    files = [file.relative_to(one) for file in one.rglob("*.safetensors")]
    assert files
    for file in files:
        tensors, expected = load_file(other / file), load_file(one / file)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in tensors)


@pytest.mark.slow
def test_run_killed_by_the_system_ends_in_the_same_bits(make_recipe, tmp_path):
    whole = run(make_recipe(output=str(tmp_path / "whole"), max_steps=8))
    recipe = make_recipe(max_steps=8, save_steps=2)
    command = [sys.executable, "-c", KILLED, recipe.model_dump_json(), "7"]
    killed = subprocess.run(command, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not Path(recipe.output).exists()
    result = run(Recipe(**recipe.model_dump() | {"resume": True}))
    assert result.resumed_from == 6
    assert_same_bits(whole.adapter, result.adapter)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"group_by_length": True},
        pytest.param({"gradient_accumulation": 2, "batch_size": 2}, marks=pytest.mark.slow),
        {"lora": {"r": 2, "dropout": 0.2}},
        {"modules_to_save": ("norm",), "head_learning_rate": 1e-3},
        pytest.param({"packing": True, "max_length": 128, "batch_size": 1}, marks=pytest.mark.slow),
        pytest.param(
            {"eval_fraction": 0.2, "eval_steps": 2, "best": "loss", "learning_rate": 0.3}, marks=pytest.mark.slow
        ),
    ],
    ids=["plain", "group_by_length", "accumulation", "lora_dropout", "head", "packing", "best"],
)
def test_resumed_run_ends_in_the_same_bits(make_recipe, tmp_path, changes):
    """Stopped in the second epoch, so that the order of its examples matters."""
    whole = run(make_recipe(output=str(tmp_path / "whole"), save_steps=2, max_steps=8, **changes))
    recipe = make_recipe(max_steps=8, save_steps=2, **changes)
    with pytest.raises(Stop):
        run(recipe, progress=stop_at(5))
    result = run(Recipe(**recipe.model_dump() | {"resume": True}))
    assert result.resumed_from == 4
    assert result.metrics["train_loss"] == whole.metrics["train_loss"]  # of all steps, not of those since
    assert_same_bits(whole.adapter, result.adapter)


@pytest.fixture
def stopped(make_recipe):
    recipe = make_recipe(save_steps=1)
    with pytest.raises(Stop):
        run(recipe, progress=stop_at(3))
    return recipe


def again(recipe: Recipe, **changes) -> Recipe:
    return Recipe(**recipe.model_dump() | {"resume": True} | changes)


def test_half_written_checkpoint_is_passed_over(stopped):
    newest = last_complete(stopped.run_dir)
    assert newest is not None
    assert newest.name == "checkpoint-2"
    (newest / MARK).unlink()  # what a kill between two files leaves
    assert run(again(stopped)).resumed_from == 1


def test_changed_base_weights_are_refused(stopped, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(stopped.model, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] *= 1.01
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        RecipeError, match="cannot resume from .*checkpoint-2: the weights of the base model .* changed"
    ):
        run(again(stopped, model=str(other)))


def test_other_structure_is_refused(stopped, tmp_path, tiny_llama):
    from tests.train.conftest import VOCABULARY, make_tokenizer

    other = tmp_path / "other"
    tiny_llama(vocab_size=VOCABULARY, num_hidden_layers=1).save_pretrained(other)
    make_tokenizer().save_pretrained(other)
    with pytest.raises(RecipeError, match="the base model was .*, now it is .* of another structure"):
        run(again(stopped, model=str(other)))


def test_changed_recipe_and_data_are_refused(stopped, write_rows):
    rows = write_rows([{"prompt": f"{i}", "completion": "x"} for i in range(12)], "other.jsonl")
    with pytest.raises(RecipeError) as error:
        run(again(stopped, learning_rate=1e-3, data=rows))
    assert "learning_rate was 0.02, now it is 0.001" in str(error.value)
    assert "the training data, or the way it is tokenised, changed" in str(error.value)


def test_another_number_of_processes_is_refused(stopped, monkeypatch):
    monkeypatch.setattr("roadkit.train.trainers.checkpoints.num_processes", lambda: 4)
    with pytest.raises(RecipeError, match="1 process shared its batches, now 4 would"):
        run(again(stopped))


def test_one_process_of_several_clears_an_earlier_run(stopped, monkeypatch):
    found = complete_checkpoints(stopped.run_dir)
    for rank, left in (("1", found), ("0", [])):
        monkeypatch.setenv("RANK", rank)
        assert resume_or_start_over(stopped, {}) is None
        assert complete_checkpoints(stopped.run_dir) == left


def test_without_resume_the_run_starts_over_and_says_so(stopped, caplog):
    result = run(stopped)
    assert result.resumed_from is None
    assert "starting over: " in caplog.text
    assert "is deleted (resume: true would continue it)" in caplog.text


def test_resume_without_a_checkpoint_starts_at_the_beginning(make_recipe, caplog):
    assert run(make_recipe(resume=True)).resumed_from is None
    assert "no complete checkpoint" in caplog.text


def test_checkpoint_is_an_adapter(stopped):
    (_, newest) = complete_checkpoints(stopped.run_dir)
    assert torch.isfinite(rk.Adapter.load(newest).a).all()
    assert json.loads((newest / MARK).read_text())["recipe"]["learning_rate"] == 0.02


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
