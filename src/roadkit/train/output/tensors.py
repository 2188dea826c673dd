"""Trained parameters to the files of an adapter (or of two: road/ and lora/), and back into a model.

    files = adapter_files(trainable_tensors(peft_model), peft_model, base, recipe)     # {"adapter_config.json": b"…", …}
    load_into(peft_model, "adapters/json.run/checkpoint-20")

The files are those of roadkit's own store, in PEFT's format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as save_safetensors
from torch import Tensor

from ...adapter import Adapter, Base
from ...errors import RecipeError
from ...store import CONFIG, PREFIX, WEIGHTS, serialize
from ..model.trainable import ADAPTER_NAME, lora_config
from ..recipe import Recipe
from .directory import LORA, ROAD


def trainable_tensors(model: PeftModel, state: Mapping[str, Tensor] | None = None) -> dict[str, dict[str, Tensor]]:
    """→ {"road": {name in the file: tensor}, "lora": …}, of every trained parameter; heads are under "road".

    state    a gathered state dict, if the parameters themselves are sharded
    """
    found: dict[str, dict[str, Tensor]] = {ROAD: {}, LORA: {}}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kind = LORA if ".lora_" in name else ROAD
        plain = name.replace(".base_layer.", ".").replace(f".modules_to_save.{ADAPTER_NAME}", "")
        plain = plain.removesuffix(f".{ADAPTER_NAME}").replace(f".{ADAPTER_NAME}.", ".")
        found[kind][plain] = parameter if state is None else state[name]
    return {kind: tensors for kind, tensors in found.items() if tensors}


def to_adapter(tensors: Mapping[str, Tensor], model: PeftModel, base: Base) -> Adapter:
    """Trained rotations and heads as an `Adapter`, bit for bit."""
    config = model.peft_config[ADAPTER_NAME]
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
    """→ file name → content of one adapter; of RoAd with LoRA those of two, in road/ and lora/, applied in that order."""
    config, weights = serialize(to_adapter(tensors[ROAD], model, base))
    if LORA not in tensors or recipe.lora is None:
        return {CONFIG: config, WEIGHTS: weights}
    layers = sorted({name.removeprefix(PREFIX).split(".lora_")[0] for name in tensors[LORA]})
    lora = lora_config(recipe.lora, layers)
    lora.base_model_name_or_path = base.name
    lora.inference_mode = True
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in lora.to_dict().items()}
    metadata = {"format": "pt", "roadkit.base_fingerprint": base.fingerprint}
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors[LORA].items()}
    return {
        f"{ROAD}/{CONFIG}": config,
        f"{ROAD}/{WEIGHTS}": weights,
        f"{LORA}/{CONFIG}": json.dumps(values, indent=2, default=str).encode(),
        f"{LORA}/{WEIGHTS}": save_safetensors(plain, metadata),
    }


@torch.no_grad()
def load_into(model: PeftModel, path: str | Path) -> None:
    """Copy the tensors of a directory of `adapter_files` into the model in training, bit for bit.

    Raises `RecipeError` for files that cannot be read, and for tensors that are not exactly the model's trained ones.
    """
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
