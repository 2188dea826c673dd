"""The base model with trainable rotations on its layers, through PEFT.

with borrowed(model):
    peft_model = make_trainable(model, recipe)      # rotations, heads and, if asked for, a LoRA around the rotations
"""

from __future__ import annotations

import logging

from peft import LoraConfig, PeftModel, PeftType, RoadConfig, get_peft_model, inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from transformers import PreTrainedModel

from ...peft_tuner import enable_peft
from ..recipe import LoraOptions, Recipe
from .targets import head_names, target_layers

log = logging.getLogger("roadkit.train")
ADAPTER_NAME = "default"  # the name inside PEFT; it is in no file


def make_trainable(model: PreTrainedModel, recipe: Recipe) -> PeftModel:
    """Put trainable rotations on the recipe's layers, in place; all but them, the heads and a LoRA is frozen.

    Raises `RecipeError` for layers that the model lacks or that the group size does not fit.
    """
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
        peft_model = get_peft_model(model, config, adapter_name=ADAPTER_NAME)
    finally:
        PEFT_TYPE_TO_TUNER_MAPPING[PeftType.ROAD] = before
    if recipe.lora is not None:
        add_lora_around(peft_model, lora_config(recipe.lora, list(layers)))
    return peft_model


def _warn_of_dequantised(model: PreTrainedModel) -> None:
    """Say that transformers unpacked a GGUF file's weights, which it does silently if no kernel package reads them packed."""
    method = getattr(getattr(model.config, "quantization_config", None), "quant_method", None)
    kinds = {str(parameter.dtype) for parameter in model.parameters() if parameter.is_floating_point()}
    if method == "gguf" and len(kinds) == 1:
        size = sum(parameter.nbytes for parameter in model.parameters()) / 1e6
        log.warning("the GGUF file's weights were dequantised to %s and take %.0f MB", *kinds, size)


def add_lora_around(peft_model: PeftModel, config: LoraConfig) -> None:
    """Put a LoRA around layers that are rotated already: z = R(Wx) + s·BAx. Both train, in float32."""
    trained = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    model = peft_model.get_base_model()
    vars(model).pop("peft_config", None)  # the rotation's; PEFT would take the LoRA for a second one of its kind
    inject_adapter_in_model(config, model, ADAPTER_NAME)
    for parameter in trained:  # PEFT froze everything but the LoRA
        parameter.requires_grad_(True)
    for name, parameter in peft_model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def lora_config(options: LoraOptions, layers: list[str]) -> LoraConfig:
    """PEFT's configuration of the LoRA that goes around the rotations."""
    return LoraConfig(
        r=options.r, lora_alpha=options.alpha, lora_dropout=options.dropout, target_modules=sorted(layers), bias="none"
    )
