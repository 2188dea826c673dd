"""Checkpoints that can be trusted after a kill: complete ones are marked, and a run goes on only where it left off.

    mark(folder, identity)                       # the last thing written, after everything is on the disk
    folder = last_complete(run_dir)              # None where there is none
    check_same(folder, identity)                 # RecipeError: base model, data or recipe changed

A checkpoint folder is an adapter directory too: `roadkit.Adapter.load("adapters/json.run/checkpoint-20")`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import RecipeError
from ...files import write_json

if TYPE_CHECKING:
    from torch import nn

    from ..recipe import Recipe

MARK = "complete.json"
SAMPLES = 64  # values of each weight that enter its fingerprint
# What may change between a run and its continuation without changing its result.
FREE = ("model", "data", "eval_data", "output", "resume", "save_steps", "keep_checkpoints", "tensorboard", "eval_steps")


def identity(recipe: Recipe, *, base: str, fingerprint: str, weights: str, data: str) -> dict[str, Any]:
    """What decides a run's result: the base model's name, structure and weights, the tokenised data, the recipe, and how
    many processes share its batches."""
    import torch

    settings = {key: value for key, value in recipe.model_dump(mode="json").items() if key not in FREE}
    return {
        "base": base,
        "fingerprint": fingerprint,
        "weights": weights,
        "data": data,
        "recipe": settings,
        "threads": torch.get_num_threads(),
        "processes": num_processes(),
    }


def num_processes() -> int:
    """That torchrun or accelerate started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def mark(folder: Path, values: Mapping[str, Any]) -> None:
    """Flush a checkpoint's files to the disk, then say that it is complete."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    write_json(folder / MARK, values)


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoints that were written to the end, the oldest first."""
    found = [path for path in run_dir.glob("checkpoint-*") if (path / MARK).is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def last_complete(run_dir: Path) -> Path | None:
    """The newest complete checkpoint; folders that a kill left half-written are passed over."""
    return next(reversed(complete_checkpoints(run_dir)), None)


def check_same(folder: Path, now: Mapping[str, Any]) -> None:
    """Raises `RecipeError` that lists what differs between the run that wrote `folder` and this one."""
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


def clear(run_dir: Path) -> None:
    """Delete a run's checkpoints, and its folder if nothing else is in it."""
    for folder in run_dir.glob("checkpoint-*"):
        shutil.rmtree(folder, ignore_errors=True)
    if run_dir.is_dir() and not any(run_dir.iterdir()):
        run_dir.rmdir()


def weights_fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits over a sample of every plain weight: other weights give others, and it takes no time."""
    import torch

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
