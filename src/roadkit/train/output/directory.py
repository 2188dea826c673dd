"""What a run writes: an adapter directory (or road/ and lora/), its model card and its figures; and reads back.

    files = adapter_files(trainable_tensors(peft_model), peft_model, base)     # {"adapter_config.json": b"…", …}
    write_files("adapters/json", files)
    load_into(peft_model, "adapters/json.run/checkpoint-20")

The directory is written through roadkit's own store, in PEFT's format, in one step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as save_safetensors
from torch import Tensor

from ...adapter import Adapter, Base
from ...errors import RecipeError
from ...files import replaced_directory
from ...store import BESIDE, CONFIG, FILES, PREFIX, WEIGHTS, serialize
from ..model.tuned import ADAPTER, lora_config

if TYPE_CHECKING:
    from peft import PeftModel

    from ..recipe import Recipe

ROAD, LORA = "road", "lora"
CARD, FIGURES = BESIDE
OWN = (*FILES, *BESIDE)  # an adapter's files


def trainable_tensors(model: PeftModel, state: Mapping[str, Tensor] | None = None) -> dict[str, dict[str, Tensor]]:
    """→ {"road": {name in the file: tensor}, "lora": …}, for every trained parameter, heads under "road".

    state    a gathered state dict, where the parameters themselves are sharded
    """
    found: dict[str, dict[str, Tensor]] = {ROAD: {}, LORA: {}}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kind = LORA if ".lora_" in name else ROAD
        plain = name.replace(".base_layer.", ".").replace(f".modules_to_save.{ADAPTER}", "")
        plain = plain.removesuffix(f".{ADAPTER}").replace(f".{ADAPTER}.", ".")
        found[kind][plain] = parameter if state is None else state[name]
    return {kind: tensors for kind, tensors in found.items() if tensors}


def to_adapter(tensors: Mapping[str, Tensor], model: PeftModel, base: Base) -> Adapter:
    """Trained rotations and heads as an `Adapter`, bit for bit."""
    config = model.peft_config[ADAPTER]
    parameters: dict[str, dict[str, Tensor]] = {}
    heads: dict[str, dict[str, Tensor]] = {}
    owners = sorted(config.modules_to_save or (), key=len, reverse=True)  # type: ignore[attr-defined]
    for name, tensor in tensors.items():
        inner = name.removeprefix(PREFIX)
        module, _, leaf = inner.rpartition(".")
        value = tensor.detach().cpu().contiguous().clone()
        if leaf in ("road_theta", "road_alpha"):
            parameters.setdefault(module, {})[leaf] = value
        else:
            owner = next(owner for owner in owners if inner.startswith(owner + "."))
            heads.setdefault(owner, {})[inner.removeprefix(owner + ".")] = value
    pairs = {module: (pair["road_theta"], pair["road_alpha"]) for module, pair in parameters.items()}
    return Adapter.from_parameters(
        pairs, variant=config.variant, group_size=config.group_size, heads=heads, base=base  # type: ignore[attr-defined]
    )  # fmt: skip


def adapter_files(
    tensors: Mapping[str, Mapping[str, Tensor]], model: PeftModel, base: Base, recipe: Recipe
) -> dict[str, bytes]:
    """The files of one adapter; of RoAd with LoRA those of two, in road/ and lora/, to be applied in that order."""
    config, weights = serialize(to_adapter(tensors[ROAD], model, base))
    if LORA not in tensors or recipe.lora is None:
        return {CONFIG: config, WEIGHTS: weights}
    layers = sorted({name.removeprefix(PREFIX).split(".lora_")[0] for name in tensors[LORA]})
    settings = lora_config(recipe.lora, layers)
    settings.base_model_name_or_path = base.name
    settings.inference_mode = True
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.to_dict().items()}
    metadata = {"format": "pt", "roadkit.base_fingerprint": base.fingerprint}
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors[LORA].items()}
    return {
        f"{ROAD}/{CONFIG}": config,
        f"{ROAD}/{WEIGHTS}": weights,
        f"{LORA}/{CONFIG}": json.dumps(values, indent=2, default=str).encode(),
        f"{LORA}/{WEIGHTS}": save_safetensors(plain, metadata),
    }


def check_output(path: str | Path, recipe: Recipe) -> None:
    """Before a run: may its adapter go to `path`? Raises `RecipeError` for a file, and for a folder of other things."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise RecipeError(f"output {path} is a file; an adapter is written as a directory")
    folders = (ROAD, LORA) if recipe.lora else ()
    found = list(path.iterdir()) if path.is_dir() else []
    others = sorted(
        item.name + "/" * item.is_dir() for item in found if item.name not in (folders if item.is_dir() else OWN)
    )
    if others:
        raise RecipeError(f"output {path} holds other things ({', '.join(others[:3])}); name a new folder")


def write_files(path: str | Path, files: Mapping[str, bytes]) -> None:
    """Write a directory in one step; a crash or a full disk leaves what was there before."""
    try:
        with replaced_directory(path, stale=OWN) as folder:
            _write(folder, files)
    except OSError as error:
        raise RecipeError(f"{path} cannot be written: {error}; what was there before is untouched") from error


def write_into(path: str | Path, files: Mapping[str, bytes]) -> None:
    """Write files into a checkpoint, where other files go as well; it is marked when it is complete."""
    Path(path).mkdir(parents=True, exist_ok=True)
    _write(Path(path), files)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


@torch.no_grad()
def load_into(model: PeftModel, path: str | Path) -> None:
    """Copy the tensors of a directory that `adapter_files` described into the model that is trained, bit for bit."""
    tensors = trainable_tensors(model)
    for kind, parameters in tensors.items():
        file = (Path(path) / kind if len(tensors) > 1 else Path(path)) / WEIGHTS
        try:
            stored = load_file(file)
        except (OSError, SafetensorError) as error:
            raise RecipeError(f"{file} cannot be read: {error}") from error
        if stored.keys() != parameters.keys():
            odd = sorted(stored.keys() ^ parameters.keys())[0]
            where = "only in the file" if odd in stored else "only in the model"
            raise RecipeError(f"{path}: the checkpoint was made by another recipe: {odd} is {where}")
        for name, parameter in parameters.items():
            if parameter.shape != stored[name].shape:
                shapes = f"{list(stored[name].shape)} in the file, {list(parameter.shape)} in the model"
                raise RecipeError(f"{path}: the checkpoint was made by another recipe: {name} is {shapes}")
            parameter.copy_(stored[name])
