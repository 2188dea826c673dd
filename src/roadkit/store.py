"""Adapters on disk, in PEFT's format: validated in full before anything is used, and written atomically.

    adapter = load("adapters/formal")            # a folder, a hub id, or an fsspec address such as s3://bucket/formal
    save(adapter, "adapters/copy")               # PEFT loads it; the same θ and α bit for bit

Only safetensors and JSON are read, never pickles. The layers are taken from the tensors' names; `target_modules` is kept
as data and never compiled as a regular expression. The base model's fingerprint travels in the safetensors metadata.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from . import sources
from .adapter import Adapter, Base
from .errors import AdapterError, AlgebraError, nearest
from .files import replaced_directory
from .rotation import VARIANTS, layer_width

CONFIG, WEIGHTS = FILES = "adapter_config.json", "adapter_model.safetensors"
BESIDE = ("README.md", "training.json")  # what training writes beside them
PREFIX = "base_model.model."
MAX_CONFIG_BYTES = 1 << 20
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_MODULE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_PICKLE_STARTS = (b"PK", *(bytes([0x80, protocol]) for protocol in range(2, 6)))  # torch's zip, pickle's protocols


def load(source: str | os.PathLike) -> Adapter:
    """Read an adapter.

    source  a local folder, a hub id (`owner/name`), or an fsspec address of a folder

    Raises one `AdapterError` that lists everything wrong with it.
    """
    config, weights = read(source)
    return parse(config, weights, origin=str(source))


def read(source: str | os.PathLike) -> tuple[bytes, bytes]:
    """The bytes of both files, not yet validated; `source` as for `load`. Raises `AdapterError`."""
    return sources.read(source, FILES)


def parse(config: bytes, weights: bytes, *, origin: str = "adapter") -> Adapter:
    """The adapter in what `read` returned. Raises one `AdapterError` that names `origin` and lists everything wrong."""
    problems: list[str] = []
    settings = _parse_config(config, problems)
    metadata, tensors = _parse_weights(weights, problems)
    parameters, heads = ({}, {}) if problems else _sort_tensors(tensors, settings, problems)
    if problems:
        more = f" (and {len(problems) - 10} more)" if len(problems) > 10 else ""
        raise AdapterError(f"{origin}: " + "; ".join(problems[:10]) + more)
    adapter = Adapter.from_parameters(
        parameters,
        variant=settings["variant"],
        group_size=settings["group_size"],
        heads=heads,
        base=Base(settings.get("base_model_name_or_path") or "", metadata.get("roadkit.base_fingerprint", "")),
    )
    _check_finite(adapter, origin)
    return adapter


def save(adapter: Adapter, path: str | os.PathLike, *, extra_files: Mapping[str, bytes] | None = None) -> None:
    """Write a PEFT directory in one step: a reader or a crash meets the old directory or the new one.

    A loaded adapter is written as it was loaded, bit for bit. A computed one is written as road_1 if every block is a
    scaled rotation, else as road_2.

    extra_files  further files to write beside the two, by name

    Raises `AdapterError` if the layers have different group sizes, which PEFT's format cannot hold, and if the folder
    holds anything else that would be deleted.
    """
    _check_finite(adapter, "the adapter cannot be saved")
    config, weights = serialize(adapter)
    if Path(path).exists() and not Path(path).is_dir():
        raise AdapterError(f"{path}: is a file; an adapter is saved as a directory")
    try:
        with replaced_directory(path, stale=BESIDE) as folder:
            for name, content in {**(extra_files or {}), CONFIG: config, WEIGHTS: weights}.items():
                (folder / name).write_bytes(content)
    except FileExistsError as error:
        raise AdapterError(str(error)) from error


def serialize(adapter: Adapter) -> tuple[bytes, bytes]:
    """The two files of a PEFT directory as bytes; `parse` reads them back. Raises `AdapterError` as `save` does."""
    variant, parameters = adapter.to_parameters()
    (group_size,) = adapter.group_sizes
    tensors: dict[str, Tensor] = {}
    for name, (theta, alpha) in parameters.items():
        tensors[f"{PREFIX}{name}.road_theta"] = theta.detach().contiguous()
        tensors[f"{PREFIX}{name}.road_alpha"] = alpha.detach().contiguous()
    for module, saved in adapter.heads.items():
        # safetensors refuses tensors that share memory, as a tied head and embedding do
        tensors |= {
            f"{PREFIX}{module}.{name}": tensor.detach().clone(memory_format=torch.contiguous_format)
            for name, tensor in saved.items()
        }
    settings = {
        "peft_type": "ROAD",
        "task_type": None,
        "base_model_name_or_path": adapter.base.name,
        "inference_mode": True,
        "variant": variant,
        "group_size": group_size,
        "init_weights": True,
        "target_modules": sorted(parameters),
        "modules_to_save": sorted(adapter.heads) or None,
    }
    metadata = {"format": "pt"}
    if adapter.base.fingerprint:
        metadata["roadkit.base_fingerprint"] = adapter.base.fingerprint
    return json.dumps(settings, indent=2).encode(), save_safetensors(tensors, metadata)


def _check_finite(adapter: Adapter, origin: object) -> None:
    """Are the rotations finite in float32? A float64 file may hold values that are finite only there."""
    if not (adapter.a.isfinite().all() and adapter.b.isfinite().all()):
        bad = next(name for name in adapter.layout.layers if not torch.cat(adapter.layer(name)[:2]).isfinite().all())
        raise AdapterError(f"{origin}: {bad}: the rotation is not finite in float32")


def _parse_config(data: bytes, problems: list[str]) -> dict:
    if len(data) > MAX_CONFIG_BYTES:
        problems.append(f"{CONFIG} has {len(data)} bytes, at most {MAX_CONFIG_BYTES} are read")
        return {}
    try:
        settings = json.loads(data)
    except (ValueError, RecursionError) as error:
        problems.append(f"{CONFIG} is not JSON: {error}")
        return {}
    if not isinstance(settings, dict):
        problems.append(f"{CONFIG} holds a {type(settings).__name__}, not an object")
        return {}
    kind = settings.get("peft_type")
    if kind != "ROAD":
        problems.append(f"peft_type is {kind!r}, not 'ROAD': only RoAd adapters can be rotated")
        return {}
    variant = settings.setdefault("variant", "road_1")
    if variant not in VARIANTS:
        problems.append(f"variant {variant!r} is none of {', '.join(VARIANTS)}{nearest(str(variant), VARIANTS)}")
    group_size = settings.setdefault("group_size", 64)
    if not isinstance(group_size, int) or isinstance(group_size, bool) or group_size < 2 or group_size % 2:
        problems.append(f"group_size must be an even number of at least 2, got {group_size!r}")
    name = settings.get("base_model_name_or_path")
    if name is not None and not isinstance(name, str):
        problems.append(f"base_model_name_or_path must be text, got {name!r}")
    saved = settings.get("modules_to_save")
    if saved is not None and not (isinstance(saved, list) and all(isinstance(item, str) for item in saved)):
        problems.append(f"modules_to_save must be a list of names, got {saved!r}")
    return settings


def _parse_weights(data: bytes, problems: list[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        tensors = load_safetensors(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError) as error:
        pickled = data[:2] in _PICKLE_STARTS
        hint = "it is a pickle, which is never loaded" if pickled else "it is truncated or corrupt"
        problems.append(f"{WEIGHTS} ({len(data)} bytes) cannot be read, {hint}: {error}")
        return {}, {}
    return metadata, tensors


def _sort_tensors(
    tensors: dict[str, Tensor], settings: dict, problems: list[str]
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, dict[str, Tensor]]]:
    """Tensors → ({module: (θ, α)}, {head: {parameter: tensor}}). Whatever does not fit is added to `problems`."""
    head_names = settings.get("modules_to_save") or []
    found: dict[str, dict[str, Tensor]] = {}
    heads: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, _, leaf = key.removeprefix(PREFIX).rpartition(".")
        if not key.startswith(PREFIX) or not _MODULE.fullmatch(module):
            problems.append(f"unexpected tensor {key!r}: names start with {PREFIX!r} and a module")
        elif leaf in ("road_theta", "road_alpha"):
            found.setdefault(module, {})[leaf] = tensor
        else:
            owner = next((head for head in head_names if module == head or module.endswith("." + head)), None)
            inner = next((head for head in head_names if f".{head}." in f".{module}."), None)
            if owner is None and inner is None:
                problems.append(f"unexpected tensor {key!r}: neither road_theta, road_alpha nor in modules_to_save")
                continue
            if owner is None:  # a parameter inside a saved module: file it under that module
                cut = f".{module}.".index(f".{inner}.") + len(str(inner))
                module, leaf = module[:cut], f"{module[cut + 1 :]}.{leaf}"
            heads.setdefault(module, {})[leaf] = tensor
    parameters = _pair(found, settings["variant"], settings["group_size"], problems)
    if not found and not problems:
        problems.append("it holds no road_theta and road_alpha tensors")
    _check_values(parameters, heads, problems)
    return parameters, heads


def _pair(
    found: dict[str, dict[str, Tensor]], variant: str, group_size: int, problems: list[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """{module: {'road_theta': θ, 'road_alpha': α}} → {module: (θ, α)} for those that make a layer."""
    parameters: dict[str, tuple[Tensor, Tensor]] = {}
    for module, pair in found.items():
        if len(pair) < 2:
            missing = "road_alpha" if "road_theta" in pair else "road_theta"
            problems.append(f"{module}: {missing} is missing")
            continue
        theta, alpha = pair["road_theta"], pair["road_alpha"]
        if theta.dim() != 1 or theta.shape != alpha.shape:
            problems.append(
                f"{module}: road_theta {list(theta.shape)} and road_alpha {list(alpha.shape)} must be equal, 1-D"
            )
            continue
        try:
            layer_width(variant, len(theta), group_size, module)
        except AlgebraError as error:
            problems.append(str(error))
            continue
        parameters[module] = (theta, alpha)
    return parameters


def _check_values(
    parameters: dict[str, tuple[Tensor, Tensor]], heads: dict[str, dict[str, Tensor]], problems: list[str]
) -> None:
    """Every value finite, and θ and α of a type that can be lowered. What is not is added to `problems`."""
    flat = {f"{module}.{name}": tensor for module, saved in heads.items() for name, tensor in saved.items()}
    rotations = [tensor for pair in parameters.values() for tensor in pair]
    kinds = {tensor.dtype for tensor in rotations}
    if not (len(kinds) == 1 and kinds <= set(FLOATS) and bool(torch.cat(rotations).isfinite().all())):
        for module, (theta, alpha) in parameters.items():  # only a bad file is looked at layer by layer
            flat |= {f"{module}.road_theta": theta, f"{module}.road_alpha": alpha}
    for name, tensor in flat.items():
        if tensor.is_floating_point():
            wide = tensor.float() if tensor.itemsize == 1 else tensor  # 8-bit floats have no isfinite
            bad = int((~wide.isfinite()).sum())
            if bad:
                problems.append(f"{name}: {bad} of {tensor.numel()} values are not finite")
        if name.endswith(("road_theta", "road_alpha")) and tensor.dtype not in FLOATS:
            problems.append(f"{name}: dtype {tensor.dtype} is none of float32, float16, bfloat16, float64")
