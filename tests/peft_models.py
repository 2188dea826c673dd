"""PEFT models with RoAd adapters far from the identity.

model = adapted(tiny_llama(), road(), road(variant="road_2"))     # adapters `one` and `two`
"""

from __future__ import annotations

from typing import Any

from peft import RoadConfig, get_peft_model
from peft.tuners.road import RoadLayer


def road(**changes):
    """A config whose adapters start far from the identity."""
    return RoadConfig(**{"group_size": 8, "target_modules": "all-linear", "init_weights": False} | changes)


def soften(model):
    """PEFT's random start has scales near zero; bring them to where training moves them, so that all is invertible."""
    for name, parameter in model.named_parameters():
        if "road_alpha" in name:
            parameter.data.uniform_(0.7, 1.3)
        if "road_theta" in name:
            parameter.data.uniform_(-0.5, 0.5)
    return model


def adapted(model, *configs):
    """`model` with one adapter a config, named one, two, three …"""
    peft_model = get_peft_model(model, configs[0], adapter_name="one")
    for name, config in zip(["two", "three", "four"], configs[1:], strict=False):
        peft_model.add_adapter(name, config)
    return soften(peft_model).eval()


def layers(model) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, RoadLayer)]
