"""The small operations of Llama-like blocks in one call each: rotary embedding, and the gating of an MLP.

    fuse_blocks(model)     # before its layers are packed; returns how many blocks' parts were replaced

transformers spells them as eleven tensor operations a layer, a tenth of a small decode step. Like a norm, a part is
replaced only if the fused one reproduces it on random input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...kernels import native

# By name: what attentions of other kinds compute besides may not show in a small probe.
ATTENTIONS = ("LlamaAttention", "MistralAttention", "Qwen2Attention")


class FusedMLP:
    """`y = down(silu(gate(x)) ⊙ up(x))`, x [..., d] float32; stands in for an MLP's `forward`."""

    def __init__(self, module: nn.Module):
        self.gate, self.up, self.down = (module.get_submodule(f"{name}_proj") for name in ("gate", "up", "down"))
        self._call = native.loaded().rk_silu_multiply

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self.gate(x), self.up(x)
        out = torch.empty_like(up)
        self._call(gate.data_ptr(), up.data_ptr(), out.data_ptr(), up.numel(), torch.get_num_threads())
        return self.down(out)


class FusedAttention:
    """Stands in for an attention's `forward`: queries and keys are turned by their positions in one call each."""

    def __init__(self, module: nn.Module):
        self.module, self.plain = module, module.forward
        self._call = native.loaded().rk_rope

    def __call__(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], attention_mask=None, **options
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states [1, tokens, d], cos and sin [1, tokens, head_dim].

        Batches, and caches of transformers' own, take the plain way.
        """
        module, (cos, sin) = self.module, position_embeddings
        head_dim: int = module.head_dim  # type: ignore[assignment]
        if len(hidden_states) != 1 or options.get("past_key_values") is not None or cos.shape[-1] != head_dim:
            return self.plain(hidden_states, position_embeddings, attention_mask, **options)
        options.pop("past_key_values", None)
        count = hidden_states.shape[1]
        projections = (module.q_proj, module.k_proj, module.v_proj)
        q, k, v = (projection(hidden_states).view(count, -1, head_dim) for projection in projections)  # type: ignore[operator]
        for x in (q, k):
            self._call(x.data_ptr(), cos.data_ptr(), sin.data_ptr(), *x.shape, torch.get_num_threads())
        attend = ALL_ATTENTION_FUNCTIONS[module.config._attn_implementation]  # type: ignore[union-attr]
        options |= {"dropout": 0.0, "scaling": module.scaling, "sliding_window": window_of(module)}
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        out, weights = attend(module, q, k, v, attention_mask, **options)
        return module.o_proj(out.reshape(1, count, -1)), weights  # type: ignore[operator]


def window_of(attention: nn.Module) -> int | None:
    """How many positions one of `ATTENTIONS` attends to, the token's own included; None: all.

    Mistral reads the number from its configuration. Llama's configuration may hold one too, which Llama ignores.
    """
    owner = attention.config if type(attention).__name__ == "MistralAttention" else attention
    return getattr(owner, "sliding_window", None)


@torch.inference_mode()
def fuse_blocks(model: nn.Module) -> int:
    """Replace the MLPs and attentions of a float32 CPU model that are of known kinds. → how many"""
    if native.load() is None:
        return 0
    return sum(_fuse_mlp(module) or _fuse_attention(module) for module in model.modules())


def _fuse_mlp(module: nn.Module) -> bool:
    projections = [getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down")]
    if not all(_is_plain(projection) for projection in projections) or set(dict(module.named_children())) - {
        "gate_proj", "up_proj", "down_proj", "act_fn",
    }:  # fmt: skip
        return False
    return _replace(module, FusedMLP(module), _random(2, projections[0].in_features))  # type: ignore[union-attr]


def _fuse_attention(module: nn.Module) -> bool:
    if type(module).__name__ not in ATTENTIONS or not all(_is_plain(child) for child in module.children()):
        return False
    angles = 3 * _random(1, 5, module.head_dim // 2)  # type: ignore[operator]
    position = tuple(torch.cat((part, part), dim=-1) for part in (angles.cos(), angles.sin()))
    config = module.config
    before = config._attn_implementation  # type: ignore[union-attr]
    config._attn_implementation = "sdpa"  # type: ignore[union-attr]  # nothing is cached for a probe
    try:
        return _replace(module, FusedAttention(module), _random(1, 5, module.q_proj.in_features), position, None)  # type: ignore
    finally:
        config._attn_implementation = before  # type: ignore[union-attr]


def _is_plain(layer: object) -> bool:
    return type(layer) is nn.Linear and layer.weight.dtype is torch.float32 and layer.weight.device.type == "cpu"


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _replace(module: nn.Module, fused, *probe) -> bool:
    """Put `fused` in the place of the module's forward if it gives the same for `probe`. → did it?"""
    expected, actual = module(*probe), fused(*probe)
    if isinstance(expected, tuple):
        expected, actual = expected[0], actual[0]
    same = bool((actual - expected).abs().max() <= 1e-5 * expected.abs().max())
    if same:
        module.forward = fused
    return same
