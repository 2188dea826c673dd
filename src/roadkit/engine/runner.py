"""`Runner`: one forward pass over the tokens of many requests, each with its own adapter.

    runner = Runner(model, cache)
    bank = Bank(model, adapters, bind=runner.bind)
    scored = runner.step([(sequence, count), …], bank)      # logits of those whose tokens are all computed

All tokens lie end to end in one row [1, tokens]; linear layers and rotations see tokens only, attention goes through
the paged cache. On the CPU the linear layers are packed for the fused kernel, rotation included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from ..errors import ModelError
from .attention import make_step, route_attention
from .bank import Bank
from .bank.bank import hook
from .bank.layer import BankLayer
from .bank.slots import IDENTITY
from .cache import PagedCache
from .cpu.fuse import fuse
from .cpu.packed import PackedLinear
from .cuda.static_decode import StaticDecode
from .options import Weights
from .sequence import TokenSequence
from .step import Span


class Scored(NamedTuple):
    """Logits of one sequence after a step.

    last    [vocab] float32, of its last token
    prompt  [count, vocab] float32, of the prompt's tokens in this step; None unless they were asked for
    """

    sequence: TokenSequence
    last: Tensor
    prompt: Tensor | None


class Runner:
    """Owns the model: packs it, routes its attention through the cache, runs steps.

    The model is changed for good: its attention works in steps only, and on the CPU its linear weights are packed.
    """

    def __init__(self, model: PreTrainedModel, cache: PagedCache, *, weights: Weights | None = None):
        self.model, self.cache = model.eval(), cache
        self.current = route_attention(model)
        self.packed: dict[nn.Module, PackedLinear] = {}
        if model.device.type == "cpu":
            self.packed = fuse(model, cache, self.current, weights=weights)
        else:
            _check_stored(model, weights)
        self.static = StaticDecode(model, cache, self.current) if cache.device.type == "cuda" else None

    def bind(self, layer: BankLayer) -> Callable[[], None]:
        """Let the bank rotate a layer: inside the fused kernel if it is packed, by a forward hook otherwise."""
        packed = self.packed.get(layer.module)
        if packed is None:
            return hook(layer)
        packed.attach(layer)
        return packed.detach

    @torch.inference_mode()
    def step(self, batch: list[tuple[TokenSequence, int]], bank: Bank) -> list[Scored]:
        """Run `count` tokens of each sequence; logits of those that have no tokens left to compute."""
        if self.static is not None and self.static.fits(batch):
            table = self.static.logits(batch, bank)
            return [Scored(sequence, last, None) for (sequence, _), last in zip(batch, table, strict=True)]
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        site_slots: list[int] = []
        spans: list[Span] = []
        wanted: list[int] = []  # tokens whose logits are needed
        for sequence, count in batch:
            assert sequence.row is not None, f"sequence {sequence.id} runs without a row"
            context = sequence.num_computed
            spans.append(Span(len(ids), count, context, sequence.pages))
            if sequence.scores_prompt:
                wanted += range(len(ids), len(ids) + count)
            elif count == sequence.remaining:
                wanted.append(len(ids) + count - 1)
            ids += sequence.token_ids[context : context + count]
            positions += range(context, context + count)
            slots += [sequence.row.slot] * count
            if bank.has_sites:
                site_slots += sequence.site_slots(count)
        device, rows = self.cache.device, self._rows(slots)
        step = make_step(self.cache, spans, rows)
        with bank.using(rows, self._rows(site_slots)), self.current.computing(step):
            output = self.model(
                input_ids=torch.tensor([ids], device=device),
                position_ids=torch.tensor([positions], device=device),
                use_cache=False,
                logits_to_keep=torch.tensor(wanted, dtype=torch.int64, device=device),  # if empty, none are computed
            )
        return _split(batch, output.logits[0].float()) if wanted else []

    def _rows(self, slots: list[int]) -> Tensor | None:
        """[1, tokens], or None if every token is the identity's."""
        if all(slot == IDENTITY for slot in slots):
            return None
        return torch.tensor([slots], device=self.cache.device)


def _split(batch: list[tuple[TokenSequence, int]], logits: Tensor) -> list[Scored]:
    """The logits [wanted tokens, vocab] by sequence."""
    scored, offset = [], 0
    for sequence, count in batch:
        if sequence.scores_prompt:
            prompt = logits[offset : offset + count]
            offset += count
            scored.append(Scored(sequence, prompt[-1], prompt))
        elif count == sequence.remaining:
            scored.append(Scored(sequence, logits[offset], None))
            offset += 1
    return scored


def _check_stored(model: PreTrainedModel, weights: Weights | None) -> None:
    """Raise `ModelError` for weights that this device does not pack and the model does not have."""
    if weights not in (None, str(model.dtype).removeprefix("torch.")):
        raise ModelError(
            f"weights={weights!r} is what the CPU packs, and the model is {model.dtype} on {model.device}: leave it out "
            "and name a model that is stored so, or device='cpu'"
        )
