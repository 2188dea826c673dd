"""A whole Llama-like decoder layer in one call, for steps in which every request computes one token.

    fuse_layers(model, packed, cache, current)     # after its parts are fused and packed; returns how many layers were replaced

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
from ..cache import PagedCache
from ..step import CurrentStep, Span, Step
from .attention import NativeDecode
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

    def __init__(self, module: nn.Module, linears: dict[str, PackedLinear], cache: PagedCache, current: CurrentStep):
        self.current = current
        self._call, self._work = native.loaded().rk_decode_layer, native.loaded().rk_decode_work
        self.plain, self.linears = module.forward, linears  # the structure below holds addresses of the latter
        self.parts = [part for part in module.modules() if part is not module]
        attention: Any = module.get_submodule("self_attn")
        num_heads, num_kv_heads = (linears[name].num_outputs // attention.head_dim for name in ("q", "k"))
        self.norms: list[Any] = [
            module.get_submodule(name).forward for name, kind in _PARTS.items() if kind is FusedNorm
        ]
        before_attention, before_mlp = self.norms
        keys, values = cache.layer(attention.layer_idx, num_kv_heads, attention.head_dim, torch.float32)
        self.native = native.DecoderLayer(
            **{name: ctypes.pointer(linear.native) for name, linear in linears.items()},
            attention_norm=before_attention.weight.data_ptr(),
            attention_eps=before_attention.eps,
            mlp_norm=before_mlp.weight.data_ptr(),
            mlp_eps=before_mlp.eps,
            scale=attention.scaling,
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=attention.head_dim,
            window=window_of(attention) or 0,
        )

    def __call__(
        self,
        hidden_states: Tensor,
        *args: Any,
        position_embeddings: tuple[Tensor, Tensor],
        **options: Any,
    ) -> Tensor:
        """hidden_states [1, requests, d] float32, cos and sin [1, requests, head_dim]."""
        step = self.current.step
        if step is None or step.chunks or not isinstance(step.decode, NativeDecode) or self._is_hooked():
            return self.plain(hidden_states, *args, position_embeddings=position_embeddings, **options)
        decode, (cosine, sine) = step.decode.native, position_embeddings
        assert hidden_states.shape[1] == decode.count, f"{hidden_states.shape[1]} tokens in a step of {decode.count}"
        x, y = hidden_states.contiguous(), torch.empty(hidden_states.shape)
        work = torch.empty(self._work(self.native, decode))
        self._call(self.native, decode, *(tensor.data_ptr() for tensor in (x, y, cosine, sine, work)))
        return y

    def _is_hooked(self) -> bool:
        return any(part._forward_hooks or part._forward_pre_hooks for part in self.parts)


@torch.inference_mode()
def fuse_layers(
    model: nn.Module, packed: dict[nn.Module, PackedLinear], cache: PagedCache, current: CurrentStep
) -> int:
    """Replace the decoder layers of known kinds whose parts are all fused and packed."""
    known = [module for module in model.modules() if type(module).__name__ in LAYERS]
    return sum(_fuse_layer(module, packed, cache, current) for module in known)


def _fuse_layer(
    module: nn.Module, packed: dict[nn.Module, PackedLinear], cache: PagedCache, current: CurrentStep
) -> bool:
    parts = dict(module.named_children())
    if set(parts) != set(_PARTS) or any(type(parts[name].forward) is not kind for name, kind in _PARTS.items()):
        return False
    names = {name: f"{part}.{name}_proj" for part, own in _LINEARS.items() for name in own}
    linears = {name: packed.get(module.get_submodule(path)) for name, path in names.items()}
    known = {name: linear for name, linear in linears.items() if linear is not None}
    if len(known) < len(linears):
        return False
    fused = FusedLayer(module, known, cache, current)
    if same := _same(module, fused, cache, current):
        module.forward = fused
    return same


def _same(module: nn.Module, fused: FusedLayer, cache: PagedCache, current: CurrentStep) -> bool:
    """Does the fused layer reproduce the plain one for a third token, on a page that nobody reads?"""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, fused.linears["q"].num_inputs, generator=generator)
    angles = 3 * torch.randn(1, 1, fused.native.head_dim // 2, generator=generator).repeat(1, 1, 2)
    position = (angles.cos(), angles.sin())
    span = Span(start=0, num_tokens=1, context=2, pages=[cache.spare_page])
    places = torch.tensor(span.places())
    step = Step(cache, places, decode=NativeDecode([span], places))
    with current.computing(step):
        expected, actual = (layer(x, position_embeddings=position) for layer in (module, fused))
    return isinstance(expected, Tensor) and bool((actual - expected).abs().max() <= 1e-5 * expected.abs().max())
