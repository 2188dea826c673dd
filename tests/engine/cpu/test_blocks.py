"""Fused parts of Llama-like blocks stand in for transformers', and only for those that they reproduce."""

import copy

import pytest
import torch
from torch import nn

from roadkit.engine.cpu.blocks import FusedAttention, FusedMLP, fuse_blocks
from roadkit.kernels import native

pytestmark = pytest.mark.skipif(native.load() is None, reason="no C compiler")


@pytest.mark.parametrize("count", [1, 15, 16, 33, 40000])
@pytest.mark.parametrize("threads", [1, 2])
def test_gating_is_the_definition(count, threads):
    gate, up = torch.randn(count) * 30, torch.randn(count)
    gate[0], out, library = 95.0, torch.empty(count), native.load()
    assert library is not None
    library.rk_silu_multiply(gate.data_ptr(), up.data_ptr(), out.data_ptr(), count, threads)
    torch.testing.assert_close(out, nn.functional.silu(gate) * up)


def test_gating_keeps_what_is_no_number():
    gate = torch.tensor([torch.nan, torch.inf, -200.0, 0.0])
    up, out, library = torch.ones(4), torch.empty(4), native.load()
    assert library is not None
    library.rk_silu_multiply(gate.data_ptr(), up.data_ptr(), out.data_ptr(), 4, 1)
    torch.testing.assert_close(out, nn.functional.silu(gate), equal_nan=True)


def test_llama_and_qwen_blocks_are_replaced_and_the_logits_stay(tiny_llama, tiny_qwen):
    for make in (tiny_llama, tiny_qwen):
        model, ids = make(), torch.arange(3, 14).unsqueeze(0)
        with torch.no_grad():
            expected = model(ids).logits
            assert fuse_blocks(model) == 4
            forwards = [module.forward for module in model.modules()]
            assert sum(type(forward) is FusedMLP for forward in forwards) == 2
            assert sum(type(forward) is FusedAttention for forward in forwards) == 2
            torch.testing.assert_close(model(ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-5)


def test_batches_and_caches_take_the_plain_way(tiny_llama):
    model, ids = tiny_llama(), torch.arange(3, 27).view(2, 12)
    with torch.no_grad():
        expected = model(ids).logits
        fuse_blocks(model)
        torch.testing.assert_close(model(ids, use_cache=True).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_window_is_handed_on(tiny_qwen):
    model = tiny_qwen(use_sliding_window=True, sliding_window=3, max_window_layers=0)
    seen = []

    def spy(module, query, key, value, mask, **options):
        seen.append(options["sliding_window"])
        return query.transpose(1, 2), None

    from transformers import AttentionInterface

    AttentionInterface.register("spy", spy)
    fuse_blocks(model)
    model.config._attn_implementation = "spy"
    with torch.no_grad():
        model(torch.arange(3, 9).unsqueeze(0), use_cache=False)
    assert seen == [3, 3]


@pytest.mark.parametrize("change", ["activation", "order", "dtype", "hooked kind of layer"])
def test_what_computes_something_else_is_left_alone(tiny_llama, change):
    model = tiny_llama()
    mlp = copy.deepcopy(model.model.layers[0].mlp)
    if change == "activation":
        mlp.act_fn = nn.GELU()
    elif change == "order":
        mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj
        mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.up_proj(x)) * mlp.gate_proj(x))
    elif change == "dtype":
        mlp = mlp.bfloat16()
    else:
        mlp.gate_proj = nn.Sequential(mlp.gate_proj)
    assert fuse_blocks(mlp) == 0
