"""PEFT directories ↔ `Adapter`: everything is validated before anything is used, and written atomically.

    adapter = load("adapters/formal")            # a folder, a hub id, or an fsspec address such as s3://bucket/formal
    save(adapter, "adapters/copy")               # PEFT loads it; the same θ and α bit for bit

Only safetensors and JSON are read. Modules are taken from the tensors' names; `target_modules` is kept as data and
never compiled as a regular expression. The base model's fingerprint travels in the safetensors metadata.
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

from .adapter import Adapter, Base
from .errors import AdapterError, AlgebraError, nearest
from .files import replaced_directory
from .rotation import VARIANTS, layer_width, raise_to_parameters

CONFIG, WEIGHTS = FILES = "adapter_config.json", "adapter_model.safetensors"
BESIDE = ("README.md", "training.json")  # what training writes beside them
PREFIX = "base_model.model."
MAX_CONFIG_BYTES = 1 << 20
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_MODULE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_PICKLE_STARTS = (b"PK", *(bytes([0x80, protocol]) for protocol in range(2, 6)))  # torch's zip, pickle's protocols
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def load(source: str | os.PathLike) -> Adapter:
    """Read an adapter. `source`: a directory, a hub id (`owner/name`), or an fsspec address of a directory.

    Raises `AdapterError` that lists everything wrong with it at once.
    """
    config, weights = read(source)
    return parse(config, weights, origin=str(source))


def read(source: str | os.PathLike, files: tuple[str, str] = FILES) -> tuple[bytes, bytes]:
    """The bytes of `adapter_config.json` and `adapter_model.safetensors`, each read once, nothing interpreted.

    files   other names of the two, of a directory
    """
    path, text = Path(source), os.fspath(source)
    if text and path.is_dir():
        return _read_directory(path, files)
    if "://" in text:
        return _read_remote(text)
    if text and path.exists():
        raise AdapterError(f"{text}: an adapter is a directory with {CONFIG} and {WEIGHTS}, this is a file")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text):
        return _read_hub(text)
    raise AdapterError(f"{text!r}: no such directory")


def parse(config: bytes, weights: bytes, *, origin: str = "adapter") -> Adapter:
    """Validate and lower what `read` returned. The same checks serve uploads."""
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

    A computed adapter is written as road_1 where every block is a scaled rotation, else as road_2.
    Raises `AdapterError` for an adapter whose layers have different group sizes, which PEFT's format cannot hold, and
    for a folder that holds anything else: what would be deleted is named.
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
    """The two files of a PEFT directory, as bytes; `parse` reads them back."""
    if len(adapter.group_sizes) != 1:
        raise AdapterError(
            f"PEFT's format holds one group_size an adapter, this one has {list(adapter.group_sizes)}; "
            "split it by layer and save the parts"
        )
    (group_size,) = adapter.group_sizes
    variant, parameters = adapter.variant, adapter.parameters
    if variant is None:
        variant, theta, alpha = raise_to_parameters(adapter.a, adapter.b, group_size)
        share = 2 if variant == "road_1" else 1
        parameters = {
            name: tuple(vector[span.start // share : span.stop // share] for vector in (theta, alpha))
            for name, span in adapter.layout.spans.items()
        }
    tensors: dict[str, Tensor] = {}
    for name, (theta, alpha) in parameters.items():
        tensors[f"{PREFIX}{name}.road_theta"] = theta.detach().contiguous()
        tensors[f"{PREFIX}{name}.road_alpha"] = alpha.detach().contiguous()
    for module, saved in adapter.heads.items():
        # copies, for safetensors refuses tensors that share memory, as a tied head and embedding do
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
    """What the rotations come to in float32; a float64 file may hold values that are finite only there."""
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


def _sort_tensors(tensors: dict[str, Tensor], settings: dict, problems: list[str]):
    """Tensors → ({module: (θ, α)}, {head: {parameter: tensor}}); whatever does not fit is added to `problems`."""
    variant, group_size = settings["variant"], settings["group_size"]
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
    if not found and not problems:
        problems.append("it holds no road_theta and road_alpha tensors")
    _check_values(parameters, heads, problems)
    return parameters, heads


def _check_values(parameters, heads, problems: list[str]) -> None:
    flat = {f"{module}.{name}": tensor for module, saved in heads.items() for name, tensor in saved.items()}
    rotations = [tensor for pair in parameters.values() for tensor in pair]
    kinds = {tensor.dtype for tensor in rotations}
    if not (len(kinds) == 1 and kinds <= set(FLOATS) and bool(torch.cat(rotations).isfinite().all())):
        for module, (theta, alpha) in parameters.items():  # only a bad file is looked at layer by layer
            flat |= {f"{module}.road_theta": theta, f"{module}.road_alpha": alpha}
    for name, tensor in flat.items():
        if tensor.is_floating_point():
            bad = int(
                (~(tensor.float() if tensor.itemsize == 1 else tensor).isfinite()).sum()
            )  # float8 has no isfinite
            if bad:
                problems.append(f"{name}: {bad} of {tensor.numel()} values are not finite")
        if name.endswith(("road_theta", "road_alpha")) and tensor.dtype not in FLOATS:
            problems.append(f"{name}: dtype {tensor.dtype} is none of float32, float16, bfloat16, float64")


def _read_directory(path: Path, files: tuple[str, str]) -> tuple[bytes, bytes]:
    """Both files of one version: where the directory was replaced between the two reads, they are read again."""
    try:
        while True:
            before = os.stat(path).st_ino
            try:
                contents = _read_file(path, files[0]), _read_file(path, files[1])
            except (AdapterError, OSError):
                if os.stat(path).st_ino == before:
                    raise
            else:
                if os.stat(path).st_ino == before:
                    return contents
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read: {error}") from error


def _read_file(path: Path, name: str) -> bytes:
    file = path / name
    if file.is_symlink() and not file.resolve().is_relative_to(_link_root(path)):
        raise AdapterError(f"{path}: {name} is a symbolic link that leaves the directory")
    if not file.exists():
        pickles = sorted(item.name for item in path.iterdir() if item.suffix in _PICKLES)
        pickle = f"; {pickles[0]} is a pickle, which is never loaded: save it as safetensors" if pickles else ""
        raise AdapterError(f"{path}: {name} is missing{pickle}")
    if not file.is_file():
        raise AdapterError(f"{path}: {name} is not a regular file")
    return file.read_bytes()


def _link_root(path: Path) -> Path:
    """How far a link may lead: within the directory, or within one model of a Hugging Face cache."""
    path = path.resolve()
    for parent in path.parents:
        if parent.name.startswith("models--") and (parent / "blobs").is_dir():
            return parent
    return path


def _read_hub(name: str) -> tuple[bytes, bytes]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return tuple(Path(hf_hub_download(name, file)).read_bytes() for file in (CONFIG, WEIGHTS))  # type: ignore[return-value]
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise AdapterError(
            f"{name}: no such directory, and the hub has no RoAd adapter of that name: {error}"
        ) from error


def _read_remote(address: str) -> tuple[bytes, bytes]:
    import fsspec

    scheme, _, rest = address.partition("://")
    if "::" in address or ".." in rest.split("/"):
        raise AdapterError(f"{address}: chained addresses and '..' are refused")
    try:
        contents = []
        for name in (CONFIG, WEIGHTS):
            with fsspec.open(f"{scheme}://{rest.rstrip('/')}/{name}", "rb") as file:
                contents.append(file.read())  # type: ignore[union-attr]
        return contents[0], contents[1]
    except (OSError, ValueError, ImportError) as error:
        raise AdapterError(f"{address}: cannot be read: {error}") from error
