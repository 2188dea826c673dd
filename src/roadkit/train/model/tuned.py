"""The base model with trainable rotations in it, through PEFT; and the base model given back untouched.

with borrowed(model):
    peft_model = tune(model, recipe)         # trains rotations, heads and, if asked for, a LoRA around them
    ...
# here the model is as it was: layers, hooks, flags, configuration
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft import LoraConfig, PeftModel, PeftType, RoadConfig, get_peft_model, inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ...errors import RecipeError, nearest
from ...modules import linear_layers, width_of
from ...peft_tuner import enable_peft
from ...rotation import check_group_size
from ..recipe import LoraOptions, Recipe

log = logging.getLogger("roadkit.train")
ADAPTER = "default"  # the name inside PEFT; it is in no file


def head_names(model: PreTrainedModel, recipe: Recipe) -> list[str]:
    """Modules trained and saved whole: the recipe's, else the new head of a classifier or regressor."""
    if recipe.modules_to_save is not None:
        known = dict(model.named_modules())
        found = {name: [n for n in known if n == name or n.endswith("." + name)] for name in recipe.modules_to_save}
        if missing := [name for name, matches in found.items() if not matches]:
            leaves = sorted({name.rsplit(".", 1)[-1] for name in known if name})
            raise RecipeError(
                f"modules_to_save: the model has no module {missing[0]!r}{nearest(missing[0], leaves)}; "
                f"its children are {', '.join(name for name, _ in model.named_children())}"
            )
        return sorted({name for matches in found.values() for name in matches})
    if recipe.task == "causal":
        return []
    return [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    ]


def inside(name: str, heads: Sequence[str]) -> bool:
    """Does a parameter of this full name, wrapped by PEFT or not, belong to one of the heads?"""
    return any(f".{head}." in f".{name}." for head in heads)


def target_layers(model: PreTrainedModel, recipe: Recipe) -> dict[str, nn.Module]:
    """The layers to rotate, by full name. Raises `RecipeError` listing the candidates, or a group size that fits."""
    heads = tuple(f"{head}." for head in head_names(model, recipe))
    candidates = {name: layer for name, layer in linear_layers(model).items() if not f"{name}.".startswith(heads)}
    if recipe.target_modules == "all-linear":
        chosen = candidates
    else:
        matches = {
            target: [name for name in candidates if f".{target}." in f".{name}."]  # itself, or all that is inside it
            for target in recipe.target_modules
        }
        leaves = sorted({name.rsplit(".", 1)[-1] for name in candidates})
        if missing := [target for target, names in matches.items() if not names]:
            raise RecipeError(
                f"target_modules: {', '.join(missing)} match{'es' if len(missing) == 1 else ''} no linear layer"
                f"{nearest(missing[0], leaves)}; candidates: {', '.join(leaves)}, or a module that holds such"
            )
        wanted = {name for names in matches.values() for name in names}
        chosen = {name: layer for name, layer in candidates.items() if name in wanted}
    if not chosen:
        raise RecipeError(f"the model ({type(model).__name__}) has no linear layer to rotate")
    _check_widths(chosen, recipe.group_size)
    return chosen


def _check_widths(layers: dict[str, nn.Module], group_size: int) -> None:
    widths = {name: width_of(layer) or 0 for name, layer in layers.items()}
    misfits = {name: width for name, width in widths.items() if width % group_size}
    if not misfits:
        return
    name, width = next(iter(misfits.items()))
    common = math.gcd(*widths.values())
    fitting = [size for size in range(2, group_size + 1, 2) if common % size == 0]
    if fitting:
        raise RecipeError(
            f"group_size {group_size} does not divide {name}'s width {width}"
            + (f" (and {len(misfits) - 1} other layers')" if len(misfits) > 1 else "")
            + f"; group_size: {fitting[-1]} fits all {len(layers)} layers"
        )
    for name, width in misfits.items():  # an odd width fits no size: name the layer
        check_group_size(width, group_size, name)


def tune(model: PreTrainedModel, recipe: Recipe) -> PeftModel:
    """Put trainable rotations on the recipe's layers, in place; everything else is frozen."""
    layers = target_layers(model, recipe)
    heads = head_names(model, recipe)
    _warn_of_dequantised(model)
    config = RoadConfig(
        variant=recipe.variant,
        group_size=recipe.group_size,
        target_modules=list(layers),
        modules_to_save=heads or None,
    )
    before = PEFT_TYPE_TO_TUNER_MAPPING[PeftType.ROAD]
    enable_peft()
    try:
        tuned = get_peft_model(model, config, adapter_name=ADAPTER)
    finally:
        PEFT_TYPE_TO_TUNER_MAPPING[PeftType.ROAD] = before
    if recipe.lora is not None:
        surround(tuned, lora_config(recipe.lora, list(layers)))
    return tuned


def _warn_of_dequantised(model: PreTrainedModel) -> None:
    """transformers unpacks a GGUF file's weights unless a kernel package reads them as they are; it does so silently."""
    method = getattr(getattr(model.config, "quantization_config", None), "quant_method", None)
    kinds = {str(parameter.dtype) for parameter in model.parameters() if parameter.is_floating_point()}
    if method == "gguf" and len(kinds) == 1:
        size = sum(parameter.nbytes for parameter in model.parameters()) / 1e6
        log.warning("the GGUF file's weights were dequantised to %s and take %.0f MB", *kinds, size)


def surround(tuned: PeftModel, config: LoraConfig) -> None:
    """Put a LoRA around layers that are rotated already: z = R(Wx) + s·BAx. Both train, in float32."""
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    model = tuned.get_base_model()
    vars(model).pop("peft_config", None)  # the rotation's; PEFT would take the LoRA for a second one of its kind
    inject_adapter_in_model(config, model, ADAPTER)
    for parameter in trained:  # PEFT froze what is no LoRA
        parameter.requires_grad_(True)
    for name, parameter in tuned.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def lora_config(options: LoraOptions, layers: list[str]) -> LoraConfig:
    """PEFT's configuration of the LoRA that goes around the rotations."""
    return LoraConfig(
        r=options.r, lora_alpha=options.alpha, lora_dropout=options.dropout, target_modules=sorted(layers), bias="none"
    )


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Afterwards the model is as it was: its modules, hooks, methods, training and gradient flags, and configuration.

    Trainers patch `forward`, set tokens in the configuration, register hooks and freeze; PEFT replaces layers. None of
    them writes the base weights, which are not copied.
    """
    states = [(module, _photograph(vars(module))) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    configs = [getattr(model, name) for name in ("config", "generation_config") if getattr(model, name, None)]
    configs += [part for config in configs for part in vars(config).values() if isinstance(part, PreTrainedConfig)]
    settings = [(config, _photograph(vars(config))) for config in configs]
    try:
        yield
    finally:
        for module, state in states:
            _restore(vars(module), state)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for config, values in settings:
            _restore(vars(config), values)


def _photograph(state: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Every attribute, and for containers (hooks, children, parameters) what is in them."""
    return {
        key: (value, copy.copy(value) if isinstance(value, dict | set | list) else None) for key, value in state.items()
    }


def _restore(state: dict[str, Any], photograph: dict[str, tuple[Any, Any]]) -> None:
    """The same objects with the same contents: handles of hooks that stood before still remove them afterwards."""
    state.clear()
    for key, (value, contents) in photograph.items():
        if isinstance(value, list):
            value[:] = contents
        elif contents is not None:
            value.clear()
            value.update(contents)
        state[key] = value
