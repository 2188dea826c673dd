"""RMS norms in one call: transformers spells them as five tensor operations, which dominate small decode steps.

    fuse_norms(model)      # before the first step; returns how many norms were replaced

A norm is replaced only if the fused operator reproduces it on random input, as weight · x̂ or as (1 + weight) · x̂, which
is Gemma's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels import native


class FusedNorm:
    """`y = weight · x / sqrt(mean(x²) + eps)`, x [..., d] float32; stands in for a norm's `forward`."""

    def __init__(self, weight: Tensor, eps: float):
        self.weight, self.eps = weight.contiguous(), eps
        self._call, self._weight_pointer = native.loaded().rk_rms_norm, self.weight.data_ptr()

    def __call__(self, x: Tensor) -> Tensor:
        x = x if x.is_contiguous() else x.contiguous()
        y = torch.empty_like(x)
        d = x.shape[-1]
        self._call(
            x.data_ptr(), self._weight_pointer, y.data_ptr(), x.numel() // d, d, self.eps, torch.get_num_threads()
        )
        return y


@torch.inference_mode()
def fuse_norms(model: nn.Module) -> int:
    """Replace the float32 RMS norms of a CPU model. → how many: 0 if there are no C kernels"""
    if native.load() is None:
        return 0
    replaced = 0
    for module in model.modules():
        weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if "RMSNorm" not in type(module).__name__ or not isinstance(weight, Tensor) or not isinstance(eps, float):
            continue
        if weight.dtype is not torch.float32 or weight.device.type != "cpu":
            continue
        x = torch.randn(2, weight.numel(), generator=torch.Generator().manual_seed(0))
        expected = module(x)
        for scale in (weight.data, 1 + weight.data):
            fused = FusedNorm(scale, eps)
            if torch.allclose(fused(x), expected, rtol=1e-5, atol=1e-6):
                module.forward = fused  # type: ignore[method-assign]
                replaced += 1
                break
    return replaced
