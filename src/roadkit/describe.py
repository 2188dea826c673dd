"""What an adapter does, in numbers that a person reads.

describe(Adapter.load("adapters/formal"))["modules"]["q_proj"]["mean_angle"]      # degrees
"""

from __future__ import annotations

from typing import Any

import torch

from .adapter import Adapter
from .rotation import condition, raise_to_parameters


def describe(adapter: Adapter) -> dict[str, Any]:
    """Identity and, for each kind of layer (the last part of its name), how far it turns and scales its pairs.

    Angles are in degrees, log scales natural; both over the adapter's (a, b), read as road_1 or road_2.
    """
    kinds: dict[str, list[str]] = {}
    for name in adapter.layout.layers:
        kinds.setdefault(name.rpartition(".")[2], []).append(name)
    modules = {}
    for kind, names in kinds.items():
        angles, scales, conditions = [], [], []
        for name in names:
            a, b, group_size = adapter.layer(name)
            _, theta, alpha = raise_to_parameters(a, b, group_size)
            angles.append(theta.abs())
            scales.append(alpha.abs().clamp_min(1e-30).log().abs())
            conditions.append(condition(a, b, group_size).max())
        angle = torch.cat(angles).rad2deg()
        modules[kind] = {
            "layers": len(names),
            "width": adapter.layout.layers[names[0]][0],
            "mean_angle": float(angle.mean()),
            "max_angle": float(angle.max()),
            "mean_log_scale": float(torch.cat(scales).mean()),
            "condition": float(torch.stack(conditions).max()),
        }
    return {
        "variant": adapter.variant or "computed",
        "group_size": ", ".join(map(str, adapter.group_sizes)),
        "layers": len(adapter.layout.layers),
        "parameters": sum(theta.numel() + alpha.numel() for theta, alpha in adapter.parameters.values()),
        "base_model": adapter.base.name,
        "base_fingerprint": adapter.base.fingerprint,
        "heads": sorted(adapter.heads),
        "content_hash": adapter.content_hash,
        "modules": modules,
    }
