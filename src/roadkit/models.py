"""Base models by name: a hub id, a folder, or a model that a Python package carries (`roadkit.bundled`).

    model, tokenizer = load_causal("smollm2"), load_tokenizer("smollm2")

Also where a model goes (`best_device`), and what tells whether an adapter was trained on it (`config_fingerprint`).
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import bundled
from .errors import ModelError, nearest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CAUSAL_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def resolve(name: str) -> str:
    """What transformers can load under this name: the folder of a bundled model, a folder as it is, or a hub id.

    Raises `ModelError` for a bundled model whose package is missing, a folder that holds no model, a GGUF file, and a
    name that is nearly that of a bundled model.
    """
    if name in bundled.BUNDLED:
        return str(bundled.folder(name))
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
    if "/" not in name and (hint := nearest(name, bundled.BUNDLED)):
        raise ModelError(f"no base model {name!r}{hint}")
    return name


def canonical_name(name: str) -> str:
    """One name for one base model, to be kept in adapters.

    A bundled model, or a local folder of one, has its hub id. Other folders become absolute paths, and hub ids stay.
    Bundled models are told by the text alone, so other machines' paths are told too.
    """
    if name in bundled.BUNDLED:
        return bundled.BUNDLED[name].hub_id
    path = Path(name).expanduser()
    if (hub_id := bundled.hub_id(path)) is not None:
        return hub_id
    return str(path.resolve()) if path.is_dir() else name


def best_device(asked: str | None = None) -> str:
    """Where a model goes: to the device asked for, by default to the GPU if there is one.

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
    """Does a GPU take no more work from this process, as after a failed assertion in one of its kernels?"""
    import torch

    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def load_causal(name: str, *, dtype: torch.dtype | str = "float32", device: str = "cpu") -> PreTrainedModel:
    """A decoder with its language-model head, in eval mode; one that sees images too.

    name    a hub id, a folder or a bundled model, as in `resolve`
    dtype   of the weights; "auto" is the type they are stored in

    Raises `ModelError` if it cannot be loaded or is no language model.
    """
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
    """A model without a head, in eval mode; with `num_labels` with a head for classification.

    That head is new unless the model brings one. Raises `ModelError` if the model cannot be loaded.
    """
    from transformers import AutoModel, AutoModelForSequenceClassification

    source = resolve(name)
    if num_labels is None:
        model = _loaded(name, AutoModel, source, dtype=dtype)
    else:
        model = _loaded(name, AutoModelForSequenceClassification, source, dtype=dtype, num_labels=num_labels)
    return model.to(device).eval()


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model; if it has no padding token, it pads with its end token. Raises `ModelError`."""
    from transformers import AutoTokenizer

    tokenizer = _loaded(name, AutoTokenizer, resolve(name))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_processor(name: str) -> Any:
    """What turns a user's inputs into the model's, as it was published: a tokenizer, or one that reads images too.

    Raises `ModelError`.
    """
    from transformers import AutoProcessor

    return _loaded(name, AutoProcessor, resolve(name))


def load_config(name: str) -> Any:
    """A base model's transformers configuration. Raises `ModelError`."""
    from transformers import AutoConfig

    return _loaded(name, AutoConfig, resolve(name))


def is_encoder(name: str) -> bool:
    """Does a base model give vectors or labels, and no text? Raises `ModelError`."""
    heads = getattr(load_config(name), "architectures", None) or []
    return bool(heads) and not any(head.endswith(CAUSAL_HEADS) for head in heads)


def _loaded(name: str, auto_class: Any, source: str, **options: Any) -> Any:
    from safetensors import SafetensorError

    try:
        return auto_class.from_pretrained(source, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{name} cannot be loaded: {error}") from error


# ---- fingerprints -------------------------------------------------------------------------------------------------

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


def config_fingerprint(config: Any) -> str:
    """16 hexadecimal digits that name a model's structure: equal for equal shapes, whatever transformers' version.

    config  a transformers configuration, or the dict of one

    Versions of transformers move defaults and spellings: `rope_theta` went into `rope_parameters`, `head_dim` became
    explicit. So values that follow from others are left out, and all spellings are read as one. Weights, labels and
    limits do not count.
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
    found["tie_word_embeddings"] = False if read("tie_word_embeddings") is False else None  # tied if unsaid
    for name in _NESTED:
        nested = read(name)
        if isinstance(nested, dict) or hasattr(nested, "model_type"):
            found[name] = _structure(nested)
    return {field: value for field, value in found.items() if value is not None}


def _rope_thetas(parameters: Any, *older: Any) -> list[float] | None:
    """Every base frequency, sorted: most models have one, some have one for each type of layer."""
    found = {float(theta) for theta in older if theta is not None}
    if isinstance(parameters, dict):
        for scope in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):
            if scope.get("rope_theta") is not None:
                found.add(float(scope["rope_theta"]))
    return sorted(found) or None
