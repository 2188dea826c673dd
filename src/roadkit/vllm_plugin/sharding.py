"""Which part of which vLLM layer an adapter's layer is: merged projections, shards, and what cannot be rotated.

    found = survey(model, group_sizes=(64,))     # vLLM's model → layers to rotate, and reasons for the others
    found.layers["model.layers.0.self_attn.qkv_proj"].parts[1]      # k_proj: rows 128 to 192 of 256 on this rank

vLLM merges q, k and v (and gate and up) into one layer and cuts each over the ranks; adapters name the layers that
Hugging Face has. A pair must not be cut, so a group size fits a layer where it divides every part's local width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

# Models whose checkpoints hold q, k, v (or gate, up) in one matrix, in the order of vLLM's parts. Others interleave
# them by head (Falcon, InternLM2, GPT-NeoX) and their loader permutes rows: a pair would be torn apart, so refuse.
FUSED_IN_ORDER = ("Phi3ForCausalLM",)


@dataclass(frozen=True)
class Part:
    """A Hugging Face layer inside a vLLM layer: this rank holds rows [start, start + width) of `full_width`.

    names    what adapters call it; several where vLLM reaches one module under several names
    columns  for a fused checkpoint layer, where this part's rows begin in the adapter's vector
    """

    names: tuple[str, ...]
    full_width: int
    start: int
    width: int


@dataclass
class Layer:
    """One vLLM linear layer that rotates: its parts in the order of its outputs, and the group sizes that fit."""

    name: str
    module: Any
    parts: list[Part]
    group_sizes: tuple[int, ...]


@dataclass
class Survey:
    """What of a model can be rotated. `reasons`: layer name → why not; `missing`: on another pipeline rank."""

    layers: dict[str, Layer] = field(default_factory=dict)
    parts: dict[str, list[Part]] = field(default_factory=dict)  # adapter layer → its pieces here (more when fused)
    reasons: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    tp_size: int = 1
