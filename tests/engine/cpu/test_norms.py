"""Fused norms stand in for transformers' RMS norms, and only for those that they reproduce."""

import pytest
import torch
from torch import nn

from roadkit.engine.cpu.norms import FusedNorm, fuse_norms
from roadkit.kernels import native

pytestmark = pytest.mark.skipif(native.load() is None, reason="no C compiler")


@pytest.mark.parametrize("width", [1, 7, 16, 64, 577])
def test_fused_norm_is_the_definition(width, close):
    x, weight = torch.randn(3, 5, width), torch.randn(width)
    expected = weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
    close(FusedNorm(weight, 1e-5)(x), expected)
    close(FusedNorm(weight, 1e-5)(x.transpose(0, 1)), expected.transpose(0, 1))


def test_llama_and_gemma_norms_are_replaced_and_the_logits_stay(tiny_llama, tiny_gemma):
    for make, count in ((tiny_llama, 5), (tiny_gemma, 13)):
        model, ids = make(), torch.arange(3, 12).unsqueeze(0)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                nn.init.normal_(parameter, mean=0.5, std=0.2)
        with torch.no_grad():
            expected = model(ids).logits
            assert fuse_norms(model) == count
            torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_norm_that_computes_something_else_is_left_alone():
    class OddRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.randn(8)), 1e-6

        def forward(self, x):
            return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.eps)

    model = nn.Sequential(OddRMSNorm())
    assert fuse_norms(model) == 0
