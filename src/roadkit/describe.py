"""What an adapter does, in numbers that a person reads: as a whole, layer by layer, pair by pair.

describe(adapter)["modules"]["q_proj"]["mean_angle"]         # degrees
anatomy(adapter)["cells"][0]                                 # one layer of it
pairs(adapter, "model.layers.0.self_attn.q_proj")["blocks"]  # its 2×2 blocks
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .adapter import Adapter
from .errors import AdapterError, AlgebraError, nearest
from .matrices import condition, power
from .rotation import is_scaled_rotation, raise_to_parameters, split_pairs

_PLACE = re.compile(r"^(?:(.*?)\.)?(\d+)\.(.+)$")


def places(layers: Iterable[str], *, shortest: int = 0) -> dict[str, tuple[int | None, str]]:
    """Layer name → (the number of its block, its kind). No other layer of the block has that kind.

    The block is the first number in the name, None if there is none. The kind is the shortest of three that tells the
    layer from all others of its block:

    0  the last part of the name, such as 'q_proj'
    1  all that follows the number, such as 'attention.output.dense': BERT has several layers called 'dense'
    2  also what precedes the number: T5 has two stacks of layers

    shortest  the kind to begin with
    """
    found: dict[str, tuple[int | None, str]] = {}
    left = {name: _kinds(name) for name in layers}
    for level in range(shortest, 3):
        taken = Counter((block, kinds[level]) for block, kinds in left.values())
        shared = {kind for (_, kind), count in taken.items() if count > 1 and level < 2}
        found |= {name: (block, kinds[level]) for name, (block, kinds) in left.items() if kinds[level] not in shared}
        left = {name: own for name, own in left.items() if name not in found}
    return found


def _kinds(name: str) -> tuple[int | None, tuple[str, str, str]]:
    """The block's number, and the kind at its three lengths."""
    place = _PLACE.match(name)
    last = name.rpartition(".")[2]
    if place is None:
        return None, (last, name, name)
    before, block, after = place.groups()
    return int(block), (last, after, f"{before}.{after}" if before else after)


def describe(adapter: Adapter) -> dict[str, Any]:
    """What an adapter is and, under 'modules', how far each kind of layer (see `places`) turns and scales its pairs.

    layers          how many layers of the kind there are
    width           outputs of the widest
    mean_angle      mean |angle| in degrees
    max_angle       largest |angle| in degrees
    mean_log_scale  mean |ln scale|
    condition       the worst condition number of a block

    Angles and scales are those of the smallest variant that holds the adapter, road_1 or road_2.
    """
    kinds: dict[str, list[str]] = {}
    for name, (_, kind) in places(adapter.layout.layers).items():
        kinds.setdefault(kind, []).append(name)
    modules = {}
    for kind, names in kinds.items():
        angles, scales, conditions = [], [], []
        for name in names:
            angle, scale = _turned(adapter, name)
            angles.append(angle)
            scales.append(scale)
            conditions.append(condition(*adapter.layer(name)).max())
        angle = torch.cat(angles)
        modules[kind] = {
            "layers": len(names),
            "width": max(adapter.layout.layers[name][0] for name in names),
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


def anatomy(adapter: Adapter) -> dict[str, Any]:
    """How far every layer turns and scales its pairs, as 'cells' in the order of blocks and then of modules.

    A cell's 'block' and 'module' are its place (see `places`): 'model.layers.3.self_attn.q_proj' is block 3, module
    'self_attn.q_proj'. Angles are in degrees, log scales natural.
    """
    cells, place_of = [], places(adapter.layout.layers, shortest=1)
    for name, (width, group_size) in adapter.layout.layers.items():
        block, module = place_of[name]
        angle, scale = _turned(adapter, name)
        cells.append(
            {
                "layer": name,
                "block": block,
                "module": module,
                "pairs": width // 2,
                "group_size": group_size,
                "mean_angle": float(angle.mean()),
                "max_angle": float(angle.max()),
                "mean_log_scale": float(scale.mean()),
                "max_log_scale": float(scale.max()),
            }
        )
    order = {cell["module"]: i for i, cell in reversed(list(enumerate(cells)))}  # as they first come
    cells.sort(key=lambda cell: (-1 if cell["block"] is None else cell["block"], order[cell["module"]]))
    return {"variant": adapter.variant or "computed", "content_hash": adapter.content_hash, "cells": cells}


def pairs(adapter: Adapter, layer: str, *, strength: float = 1.0) -> dict[str, Any]:
    """The 2×2 blocks of one layer at a strength, under 'blocks' as [pairs][4]: a_lo, b_lo, b_hi, a_hi.

    They turn a pair by z_lo = a_lo·h_lo + b_lo·h_hi and z_hi = b_hi·h_lo + a_hi·h_hi. 'rotations' says whether all are
    scaled rotations.
    Raises `AdapterError` for a layer that the adapter does not turn, `AlgebraError` if the power does not exist.
    """
    if layer not in adapter.layout.layers:
        raise AdapterError(f"the adapter turns no layer {layer[:200]!r}{nearest(layer[:200], adapter.layout.layers)}")
    a, b, group_size = adapter.layer(layer)
    rotations = bool(is_scaled_rotation(a, b, group_size).all())
    try:
        a, b = power(a, b, strength, group_size)
    except AlgebraError as error:
        raise AlgebraError(f"{layer}, pair {error.pair}: {error}", pair=error.pair) from None
    a_lo, a_hi = split_pairs(a, group_size)
    b_lo, b_hi = split_pairs(b, group_size)
    blocks = torch.stack([a_lo, b_lo, b_hi, a_hi], dim=-1).view(-1, 4)
    rounded = [[round(value, 6) for value in block] for block in blocks.tolist()]
    return {"layer": layer, "group_size": group_size, "strength": strength, "rotations": rotations, "blocks": rounded}


def _turned(adapter: Adapter, name: str) -> tuple[Tensor, Tensor]:
    """|angle| in degrees and |ln scale| of a layer: for each pair if all are scaled rotations, else for each output."""
    _, theta, alpha = raise_to_parameters(*adapter.layer(name))
    return theta.abs().rad2deg(), alpha.abs().clamp_min(1e-30).log().abs()
