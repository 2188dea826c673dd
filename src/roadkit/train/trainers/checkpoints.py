"""Checkpoints that can be trusted after a kill: complete ones are marked, and only the same run continues from one.

    mark_complete(folder, identity)                      # the last thing written, after everything is on the disk
    folder = last_complete(run_dir)                      # None if there is none
    folder = resume_or_start_over(recipe, identity)      # RecipeError: base model, data or recipe changed

A checkpoint folder is an adapter directory too: `roadkit.Adapter.load("adapters/json.run/checkpoint-20")`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import RecipeError
from ...files import write_json
from ..recipe import Recipe
from .processes import is_first_process, num_processes

log = logging.getLogger("roadkit.train")

MARK = "complete.json"
SAMPLES = 64  # values of each weight that enter its fingerprint
MAY_CHANGE = (  # keys of a recipe that do not change a run's result: its continuation may have others
    "model", "data", "eval_data", "output", "resume", "save_steps", "keep_checkpoints", "tensorboard", "eval_steps",
)  # fmt: skip


def run_identity(recipe: Recipe, *, base: str, fingerprint: str, weights: str, data: str) -> dict[str, Any]:
    """What decides a run's result, as JSON values; a checkpoint is continued by a run with the same.

    base, fingerprint    the base model's name, and the fingerprint of its configuration
    weights, data        `weights_fingerprint` of the base, `data_fingerprint` of the rows
    """
    return {
        "base": base,
        "fingerprint": fingerprint,
        "weights": weights,
        "data": data,
        "recipe": recipe.model_dump(mode="json", exclude=set(MAY_CHANGE)),
        "threads": torch.get_num_threads(),
        "processes": num_processes(),
    }


def mark_complete(folder: Path, identity: Mapping[str, Any]) -> None:
    """Flush a checkpoint's files to the disk, then write the file that makes it complete."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    write_json(folder / MARK, identity)


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoints that were written to the end, the oldest first."""
    found = [path for path in run_dir.glob("checkpoint-*") if (path / MARK).is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def last_complete(run_dir: Path) -> Path | None:
    """The newest complete checkpoint; folders that a kill left half-written are passed over."""
    return next(reversed(complete_checkpoints(run_dir)), None)


def resume_or_start_over(recipe: Recipe, identity: Mapping[str, Any]) -> Path | None:
    """The checkpoint that a run goes on from; None if it starts at the beginning.

    Without `resume` the checkpoints of an earlier run are deleted. Raises `RecipeError` for a checkpoint that was written
    by a run of another identity.
    """
    found = last_complete(recipe.run_dir)
    if recipe.resume:
        if found is None:
            log.warning("no complete checkpoint in %s: the run starts at the beginning", recipe.run_dir)
        else:
            _check_same(found, identity)
        return found
    if found is not None:
        log.warning("starting over: %s of an unfinished run is deleted (resume: true would continue it)", found)
    if is_first_process():
        delete_checkpoints(recipe.run_dir)
    return None


def _check_same(folder: Path, now: Mapping[str, Any]) -> None:
    """Raises `RecipeError` that lists what differs between the run that wrote `folder` and this one, `now`."""
    try:
        then = json.loads((folder / MARK).read_text())
    except (OSError, ValueError) as error:
        raise RecipeError(f"{folder}: the checkpoint cannot be read: {error}") from error
    problems = []
    if then.get("fingerprint") != now["fingerprint"]:
        problems.append(f"the base model was {then.get('base')!r}, now it is {now['base']!r} of another structure")
    elif then.get("weights") != now["weights"]:
        problems.append(f"the weights of the base model {now['base']!r} changed")
    if then.get("data") != now["data"]:
        problems.append("the training data, or the way it is tokenised, changed")
    if (shared := then.get("processes", now["processes"])) != now["processes"]:
        problems.append(f"{shared} process{'es' * (shared != 1)} shared its batches, now {now['processes']} would")
    recipe = then.get("recipe", {})
    for key, value in now["recipe"].items():
        if key in recipe and recipe[key] != value:
            problems.append(f"{key} was {recipe[key]!r}, now it is {value!r}")
    if problems:
        raise RecipeError(
            f"cannot resume from {folder}: {'; '.join(problems)}. Undo the change, or start over with resume: false"
        )


def delete_checkpoints(run_dir: Path) -> None:
    """Delete a run's checkpoints, and its folder if nothing else is in it."""
    for folder in run_dir.glob("checkpoint-*"):
        shutil.rmtree(folder, ignore_errors=True)
    if run_dir.is_dir() and not any(run_dir.iterdir()):
        run_dir.rmdir()


def weights_fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits over a sample of every weight that is a plain tensor: quick, and others for other weights."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if type(parameter.data) is torch.Tensor and parameter.device.type != "meta":
            flat = parameter.detach().flatten()
            sample = flat[:: max(1, flat.numel() // SAMPLES)][: 2 * SAMPLES].cpu().contiguous()
            digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
            digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def data_fingerprint(examples: Sequence[Mapping[str, Any]]) -> str:
    """16 hexadecimal digits over tokenised examples, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example["input_ids"], example["labels"]]).encode())
    return digest.hexdigest()[:16]
