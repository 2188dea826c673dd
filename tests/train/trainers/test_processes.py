"""Two processes train one adapter together, as under `accelerate launch` or `torchrun`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import roadkit as rk
from roadkit.train import run
from roadkit.train.recipe import dump_recipe


@pytest.mark.slow
def test_two_processes_train_as_one_does(make_recipe, questions, tmp_path):
    """Two rows each, or four in one process: the same examples in every step, so the same adapter."""
    changes = {"max_steps": 3, "save_steps": 2, "eval_data": questions, "warmup": 0, "keep_checkpoints": True}
    alone = run(make_recipe(batch_size=4, output=str(tmp_path / "alone"), **changes))
    recipe = make_recipe(batch_size=2, output=str(tmp_path / "together"), **changes)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2"]
    command = [sys.executable, *launch, "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    done = subprocess.run(
        [*command, "-m", "roadkit", "train", str(tmp_path / "recipe.yaml")],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("step 3/3  loss") == 1, "one process speaks"
    facts = json.loads((Path(recipe.output) / "training.json").read_text())
    assert facts["tokens"] == alone.tokens
    assert facts["metrics"]["train_loss"] == pytest.approx(alone.metrics["train_loss"], rel=1e-3)
    together = rk.Adapter.load(recipe.output)
    torch.testing.assert_close(together.a, rk.Adapter.load(alone.adapter).a, rtol=1e-5, atol=1e-5)
    assert (Path(recipe.run_dir) / "checkpoint-2" / "complete.json").is_file()
    assert (Path(recipe.run_dir) / "checkpoint-2" / "rng_state_1.pth").is_file()
