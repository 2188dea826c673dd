"""`Runner`: one forward pass over the tokens of many requests, each with its own adapter.

    scored = runner.step([(sequence, count), …], bank)      # logits of those whose tokens are all computed

All tokens lie end to end in one row [1, tokens]; linear layers and rotations see tokens only, attention goes through
the paged cache. On the CPU the linear layers are packed for the fused kernel, rotation included.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from ..errors import ModelError
from .attention import Span, install
from .bank import IDENTITY, Bank
from .bank_layer import BankLayer
from .cache import PagedCache
from .cpu.blocks import fuse_blocks
from .cpu.layers import fuse_layers
from .cpu.norms import fuse_norms
from .cpu.packed import PackedLinear, pack
from .cuda.static_decode import StaticDecode
from .options import Weights
from .scheduler import Sequence, site_slots

log = logging.getLogger("roadkit.engine")


class Scored(NamedTuple):
    """Logits of one sequence after a step: of its last token, and of its prompt tokens where they were asked for."""

    sequence: Sequence
    last: Tensor  # [vocab] float32
    prompt: Tensor | None  # [count, vocab] float32


class Runner:
    """Owns the model: packs it, routes its attention through the cache, runs steps.

    The model is changed for good (its linear weights are packed where the fused kernel exists).
    """

    def __init__(self, model: PreTrainedModel, cache: PagedCache, *, weights: Weights | None = None):
        self.model, self.cache = model.eval(), cache
        self.attention = install(model, cache)
        self.decode: StaticDecode | None = None
        fused = fuse_norms(model) + fuse_blocks(model) if model.dtype is torch.float32 else 0
        self.packed = _packed(model, weights)
        fused += fuse_layers(model, self.packed, self.attention)
        log.info("%d linear layers are packed for the fused kernel, %d other parts fused", len(self.packed), fused)

    def bind(self, layer: BankLayer) -> Callable[[], None]:
        """Let the bank rotate a layer: inside the fused kernel where it is packed, by a forward hook elsewhere."""
        packed = self.packed.get(layer.module)
        if packed is None:
            return layer.module.register_forward_hook(layer).remove
        packed.layer = layer
        return lambda: setattr(packed, "layer", None)

    def _static(self, bank: Bank) -> StaticDecode | None:
        """Captured decode steps, on CUDA."""
        if self.decode is None and self.cache.device.type == "cuda":
            self.decode = StaticDecode(self.model, self.attention, bank)
        return self.decode

    @torch.inference_mode()
    def step(self, batch: list[tuple[Sequence, int]], bank: Bank) -> list[Scored]:
        """Run `count` tokens of each sequence; logits of those that have no tokens left to compute."""
        static = self._static(bank)
        if static is not None and static.fits(batch):
            return [Scored(sequence, last, None) for (sequence, _), last in zip(batch, static.run(batch), strict=True)]
        ids: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        sites: list[int] = []
        spans: list[Span] = []
        wanted: list[int] = []  # rows of the logits
        for sequence, count in batch:
            assert sequence.row is not None
            context = sequence.num_computed
            spans.append(Span(len(ids), count, context, sequence.pages))
            if sequence.request.prompt_logprobs is not None and context < sequence.num_prompt:
                wanted += range(len(ids), len(ids) + count)
            elif count == sequence.remaining:
                wanted.append(len(ids) + count - 1)
            ids += sequence.token_ids[context : context + count]
            positions += range(context, context + count)
            rows += [sequence.row.slot] * count
            if bank.has_sites:
                sites += site_slots(sequence, count)
        self.attention.begin(spans)
        device = self.cache.device
        bank.current = torch.tensor([rows], device=device) if any(row != IDENTITY for row in rows) else None
        bank.current_sites = torch.tensor([sites], device=device) if any(sites) else None
        try:
            logits = self.model(
                input_ids=torch.tensor([ids], device=device),
                position_ids=torch.tensor([positions], device=device),
                use_cache=False,
                logits_to_keep=torch.tensor(wanted, dtype=torch.int64, device=device),  # of none: still an index
            ).logits[0].float()  # fmt: skip
        finally:
            bank.current = bank.current_sites = None
        return self._split(batch, logits) if wanted else []

    def _split(self, batch: list[tuple[Sequence, int]], logits: Tensor) -> list[Scored]:
        scored, offset = [], 0
        for sequence, count in batch:
            prompt = None
            if sequence.request.prompt_logprobs is not None and sequence.num_computed < sequence.num_prompt:
                prompt = logits[offset : offset + count]
                offset += count
                last = prompt[-1]
            elif count == sequence.remaining:
                last = logits[offset]
                offset += 1
            else:
                continue
            scored.append(Scored(sequence, last, prompt))
        return scored


def _packed(model: PreTrainedModel, weights: Weights | None) -> dict[nn.Module, PackedLinear]:
    if model.device.type == "cpu":
        return pack(model, weights=weights)
    if weights not in (None, str(model.dtype).removeprefix("torch.")):
        raise ModelError(
            f"weights={weights!r} is what the CPU packs, and the model is {model.dtype} on {model.device}: leave it out "
            "and name a model that is stored so, or device='cpu'"
        )
    return {}
