"""Table 6 with a random LLaVA, and on pictures on disk with a tiny one and its own processor."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from paper.cli import app
from paper.runs.multimodal import PretrainedLlava, RandomLlava, run_multimodal
from roadkit.errors import RecipeError, RoadkitError


def test_multimodal_plumbing_runs(llama, ledger):
    run_multimodal(RandomLlava(tokenizer=llama, rows=4, epochs=1), ledger)
    assert [row["recipe"]["method"] for row in ledger.rows()] == ["lora", "road_4", "road_1+lora"]
    for row in ledger.rows():
        assert "plumbing only" in row["recipe"]["scale"]
        assert set(row["metrics"]["scores"]) == {"gqa", "scienceqa", "textvqa", "pope"}


def test_pictures_are_learnt_and_scored(llava, album, ledger):
    settings = PretrainedLlava(
        model=llava, epochs=120, batch_size=8, gradient_accumulation=1, learning_rate=1e-2, new_tokens=6, bf16=False
    )
    options = {"data": album, "tasks": ["pope", "textvqa"]}
    assert run_multimodal(settings, ledger, **options) == 0
    scores = {row["recipe"]["method"]: row["metrics"]["scores"] for row in ledger.rows()}
    assert scores.keys() == {"lora_128", "road_4", "road_1+lora_32"}
    # red or not is in the picture alone; the LoRAs would need other learning rates
    assert scores["road_4"] == {"pope": 1.0, "textvqa": 1.0}
    assert all(row["metrics"]["questions"] == 8 for row in ledger.rows())
    before = ledger.path.read_bytes()
    assert run_multimodal(settings, ledger, **options) == 0 and ledger.path.read_bytes() == before


def test_what_is_missing_is_named(album, ledger, tmp_path, monkeypatch):
    monkeypatch.setenv("ROADKIT_CACHE", str(tmp_path))
    with pytest.raises(RecipeError, match=r"no multimodal/train\.jsonl, multimodal/pope\.jsonl in .*paper-data"):
        run_multimodal(PretrainedLlava(), ledger, tasks=["pope"])
    with pytest.raises(RecipeError, match="a random model takes no folder of pictures"):
        run_multimodal(RandomLlava(), ledger, data=album)
    with pytest.raises(RecipeError, match="no task 'gqaa'"):
        run_multimodal(RandomLlava(), ledger, tasks=["gqaa"])


@pytest.mark.parametrize("option", ["--model", "--data"])
def test_options_of_the_full_scale_are_not_for_the_small_one(option, tmp_path):
    done = CliRunner().invoke(app, ["multimodal", option, "folder", "--ledger", str(tmp_path / "l")])
    assert isinstance(done.exception, RoadkitError) and f"{option} is for --scale full" in str(done.exception)


def test_the_command_runs_a_model_of_ones_own(llava, album, tmp_path):
    path = tmp_path / "ledger.jsonl"
    words = [
        "multimodal", "--scale", "full", "--model", llava, "--data", str(album), "--tasks", "gqa",
        "--batch-size", "8", "--no-bf16", "--ledger", str(path), "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert json.loads(done.stdout.splitlines()[-1]) == {"ledger": str(path), "runs": 3, "left": 0}
