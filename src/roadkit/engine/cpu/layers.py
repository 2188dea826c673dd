"""A whole Llama-like decoder layer in one call, for steps in which every request computes one token.

    fuse_layers(model, packed, step)     # after its parts are fused and packed; returns how many layers were replaced

Between a layer's operators, torch and transformers spend a third of a small decode step. The operators are the same as
apart and run in the same order: a request's bits don't depend on which way its step took. Steps with prompts, layers
with interventions or hooks, and what else isn't known here take the plain way.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels import native
from ..attention import Span, Step
from .blocks import FusedAttention, FusedMLP, window_of
from .norms import FusedNorm
from .packed import PackedLinear

LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")
_LINEARS = {"self_attn": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}
_PARTS = {
    "self_attn": FusedAttention,
    "mlp": FusedMLP,
    "input_layernorm": FusedNorm,
    "post_attention_layernorm": FusedNorm,
}


class FusedLayer:
    """Stands in for a decoder layer's `forward`."""

    def __init__(self, module: nn.Module, linears: dict[str, PackedLinear], step: Step):
        self.step, self.plain, self.linears = step, module.forward, linears
        self.parts = [part for part in module.modules() if part is not module]
        attention: Any = module.get_submodule("self_attn")
        self.index, self.window = attention.layer_idx, window_of(attention)
        num_heads, num_kv_heads = (linears[name].num_outputs // attention.head_dim for name in ("q", "k"))
        self.norms: list[Any] = [
            module.get_submodule(name).forward for name, kind in _PARTS.items() if kind is FusedNorm
        ]
        before_attention, before_mlp = self.norms
        self.native = native.DecoderLayer(
            **{name: linear.describe() for name, linear in linears.items()},
            attention_norm=before_attention.weight.data_ptr(),
            attention_eps=before_attention.eps,
            mlp_norm=before_mlp.weight.data_ptr(),
            mlp_eps=before_mlp.eps,
            scale=attention.scaling,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=attention.head_dim,
        )
        self._rotations: dict[str, native.Rotations | None] = dict.fromkeys(linears)
        library = native.load()
        assert library is not None, "fuse_layers() was called without the native kernels"
        self._call, self._work = library.rk_decode_layer, library.rk_decode_work

    def __call__(self, hidden_states: Tensor, *args, position_embeddings: tuple[Tensor, Tensor], **options) -> Tensor:
        """hidden_states [1, requests, d] float32, cos and sin [1, requests, head_dim]."""
        step = self.step.native
        if step is None or self.step.static is not None or self._hooked():
            return self.plain(hidden_states, *args, position_embeddings=position_embeddings, **options)
        assert hidden_states.shape[1] == step.count, f"{hidden_states.shape[1]} tokens in a step of {step.count}"
        cosine, sine = position_embeddings
        x, y = hidden_states.contiguous(), torch.empty(hidden_states.shape)
        step.rows = self._bind()
        layer, tokens = ctypes.byref(self.native), ctypes.byref(step)
        work = torch.empty(self._work(layer, tokens))
        tensors = (x, y, self.step.first(self.window), cosine, sine, work)
        self._call(layer, tokens, *(tensor.data_ptr() for tensor in tensors))
        return y

    def _hooked(self) -> bool:
        return any(part._forward_hooks or part._forward_pre_hooks for part in self.parts)

    def _bind(self) -> int | None:
        """Point at the cache and at the rotations as they are now; the address of the step's bank rows."""
        if not self.native.keys:
            cache = self.step.cache.layer(self.index, self.native.num_kv_heads, self.native.head_dim, torch.float32)
            self.native.keys, self.native.values = (pool.data_ptr() for pool in cache)
        rows = None
        for name, linear in self.linears.items():
            layer = linear.layer
            rotations = layer.native if layer is not None else None
            if rotations is not self._rotations[name]:
                self._rotations[name] = rotations
                getattr(self.native, name).rotations = ctypes.pointer(rotations) if rotations is not None else None
            if layer is not None:
                rows = layer.bank.current
        return None if rows is None else rows.data_ptr()


@torch.inference_mode()
def fuse_layers(model: nn.Module, packed: dict[nn.Module, PackedLinear], step: Step) -> int:
    """Replace the decoder layers of known kinds whose parts are all fused and packed."""
    return sum(_fuse_layer(module, packed, step) for module in model.modules() if type(module).__name__ in LAYERS)


def _fuse_layer(module: nn.Module, packed: dict[nn.Module, PackedLinear], step: Step) -> bool:
    parts = dict(module.named_children())
    if set(parts) != set(_PARTS) or any(type(parts[name].forward) is not kind for name, kind in _PARTS.items()):
        return False
    linears = {
        name: packed.get(parts[part].get_submodule(f"{name}_proj"))
        for part, names in _LINEARS.items()
        for name in names
    }
    if any(linear is None for linear in linears.values()):
        return False
    fused = FusedLayer(module, linears, step)  # type: ignore[arg-type]
    if same := _same(module, fused, step):
        module.forward = fused
    return same


def _same(module: nn.Module, fused: FusedLayer, step: Step) -> bool:
    """Does the fused layer reproduce the plain one for a third token, on a page that nobody reads?"""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, fused.linears["q"].num_inputs, generator=generator)
    angles = 3 * torch.randn(1, 1, fused.native.head_dim // 2, generator=generator).repeat(1, 1, 2)
    position = (angles.cos(), angles.sin())
    step.begin([Span(start=0, count=1, context=2, pages=[step.cache.spare_page])])
    expected, actual = module(x, position_embeddings=position), fused(x, position_embeddings=position)
    step.begin([])
    return isinstance(expected, Tensor) and bool((actual - expected).abs().max() <= 1e-5 * expected.abs().max())
