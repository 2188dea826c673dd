"""A model made fast on the CPU: what the C kernels can compute takes the place of the model's own operations.

packed = fuse(model, cache, current, weights="int8")      # module → its packed form
"""

from __future__ import annotations

import logging

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from ..cache import PagedCache
from ..options import Weights
from ..step import CurrentStep
from .blocks import fuse_blocks
from .layers import fuse_layers
from .norms import fuse_norms
from .packed import PackedLinear, pack

log = logging.getLogger("roadkit.engine")


def fuse(
    model: PreTrainedModel, cache: PagedCache, current: CurrentStep, *, weights: Weights | None = None
) -> dict[nn.Module, PackedLinear]:
    """Pack the linear layers as `weights`, fuse norms, blocks and layers. → module → its packed form.

    current  what tells the model's attention its step, as `route_attention` returned it

    The model is changed for good, and can only run forward.
    """
    fused = fuse_norms(model) + fuse_blocks(model) if model.dtype is torch.float32 else 0
    packed = pack(model, weights=weights)
    fused += fuse_layers(model, packed, cache, current)
    log.info("%d linear layers are packed for the fused kernel, %d other parts fused", len(packed), fused)
    return packed
