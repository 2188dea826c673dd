"""Interventions on any Hugging Face model, for the length of a block; leaving restores the model exactly.

    with intervened(model, tasks.select("german")):              # every sample of the batch
        model.generate(**inputs)
    with intervened(model, [tasks.select("german"), None, tasks]):   # a mixed batch, one for each sample
        model.generate(**inputs)
    states = capture(model, ["model.layers.15"], "last:1", **inputs)  # hidden states to interchange

The first pass, in which nothing is cached yet, holds the prompts; the attention mask says how long each one is. Later
passes hold generated tokens. Without a cache they hold the first pass's tokens too, and those generated since. To score
prompts and answers in one pass, give `num_prompt`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError, RequestError, nearest
from ..kernels.rows import rotate_rows
from .intervention import Intervention
from .positions import Positions
from .sites import check_sites, hidden_of, with_hidden


class ForwardPass:
    """What the running forward pass holds: for each sample the columns of its tokens, and whether they are a prompt.

    num_prompt  tokens of each sample that are the prompt, if one pass holds answers too
    """

    def __init__(self, num_prompt: Sequence[int] | None = None):
        self.num_prompt = num_prompt
        self.columns: list[list[int]] = []
        self.is_prompt = True
        self._last: Tensor | None = None  # the tokens of the last pass that read prompts,
        self._lengths: list[int] = []  # and the length of each prompt

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the model: look at what the pass is given. Raises `RequestError` if that does not tell."""
        inputs = args[0] if args else kwargs.get("input_ids")
        inputs = inputs if inputs is not None else kwargs.get("inputs_embeds")
        if inputs is None:
            raise RequestError("an intervened model needs input_ids or inputs_embeds")
        batch, tokens = inputs.shape[:2]
        cache = kwargs.get("past_key_values")
        cached = int(cache.get_seq_length()) if cache is not None else 0
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.dim() != 2:
            raise RequestError(f"interventions need a mask [batch, tokens] to find the prompts, got {list(mask.shape)}")
        self.is_prompt = cached == 0
        if mask is None or not self.is_prompt:
            self.columns = [list(range(tokens))] * batch
        else:
            self.columns = [row.nonzero().squeeze(1).tolist() for row in mask[:, :tokens].bool()]
        if self.is_prompt:
            if not self._goes_on(inputs):
                self._lengths = list(map(len, self.columns))
            self._last = inputs

    def _goes_on(self, inputs: Tensor) -> bool:
        """Does the pass read the last one's tokens again and one more, as generation without a cache does?"""
        last = self._last
        return last is not None and inputs.shape[1] == last.shape[1] + 1 and torch.equal(last, inputs[:, :-1])

    def chosen(self, sample: int, positions: Positions) -> list[int]:
        """The columns of the pass at which an intervention at `positions` acts on a sample."""
        columns = self.columns[sample]
        if not self.is_prompt:
            return columns if positions.generated else []
        length = (self._lengths if self.num_prompt is None else self.num_prompt)[sample]
        if not 0 < length <= len(columns):
            raise RequestError(f"sample {sample}: num_prompt is {length}, the pass holds {len(columns)} tokens of it")
        answer = columns[length:] if positions.generated else []
        return [columns[position] for position in positions.of_prompt(length)] + answer


class _Site:
    """Forward hook of one site: each sample is interchanged and rotated by its own intervention."""

    def __init__(self, name: str, items: Sequence[Intervention | None], current: ForwardPass):
        self.name, self.items, self.current = name, list(items), current
        acting = [item for item in items if item is not None and name in item.sites]
        self.slots: dict[int, int] = {id(item): 1 + slot for slot, item in enumerate(acting)}
        layers = [item.rotation.layer(name) for item in acting]
        sizes = {group_size for _, _, group_size in layers}
        self.sizes = tuple(sorted(sizes))
        width = len(layers[0][0])
        self.a = torch.stack([torch.ones(width), *(a for a, _, _ in layers)])
        self.b = torch.zeros(len(self.sizes), len(layers) + 1, width)
        for slot, (_, b, group_size) in enumerate(layers, 1):
            self.b[self.sizes.index(group_size), slot] = b

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        h = hidden_of(output)
        items = self.items if len(self.items) > 1 else self.items * len(self.current.columns)
        if len(items) != h.shape[0]:
            raise RequestError(f"{len(items)} interventions for a batch of {h.shape[0]}; give one, or one a sample")
        rows = torch.zeros(h.shape[:2], dtype=torch.int64)
        sources: list[tuple[int, list[int], Intervention]] = []
        for sample, item in enumerate(items):
            if item is None or id(item) not in self.slots:
                continue
            columns = self.current.chosen(sample, item.positions)
            rows[sample, columns] = self.slots[id(item)]
            if item.source is not None and columns:
                sources.append((sample, columns, item))
        if not rows.any():
            return output
        if self.a.device != h.device:
            self.a, self.b = self.a.to(h.device), self.b.to(h.device)
        rows = rows.to(h.device)
        mixed = h
        for sample, columns, item in sources:
            mixed = mixed.clone() if mixed is h else mixed
            mixed[sample, columns] = self._exchanged(h[sample, columns], item)
        return with_hidden(output, rotate_rows(mixed, rows, self.a, self.b, self.sizes))

    def _exchanged(self, h: Tensor, item: Intervention) -> Tensor:
        """h [k, d] with the chosen pairs taken from the source; rotating it then gives h + Pᵀ(P R s − P h)."""
        assert item.source is not None
        states = item.source[self.name].to(h.device, h.dtype)
        if len(states) not in (1, len(h)):
            raise RequestError(
                f"{self.name}: the source has {len(states)} hidden states, the intervention acts on {len(h)} positions"
            )
        if item.chosen is None:
            return states.expand_as(h)
        return torch.where(item.chosen.mask.to(h.device), states, h)


@contextmanager
def intervened(
    model: nn.Module,
    interventions: Intervention | Sequence[Intervention | None],
    *,
    num_prompt: Sequence[int] | None = None,
) -> Iterator[nn.Module]:
    """Intervene in every pass inside the block; nested blocks apply in turn.

    interventions  one for all samples of a batch, or one for each sample (None: that sample is left alone)
    num_prompt     tokens of each sample that are the prompt, if one pass holds answers too

    Raises `ModelError` for sites that the model lacks, and in a pass `RequestError` for positions outside a prompt. However
    the block is left, the model's parameters, buffers and hooks are what they were.
    """
    items = [interventions] if isinstance(interventions, Intervention) else list(interventions)
    names: dict[str, None] = {}
    for item in items:
        if item is not None:
            check_sites(model, [(name, width) for name, (width, _) in item.rotation.layout.layers.items()])
            names |= dict.fromkeys(item.sites)
    current = ForwardPass(num_prompt)
    handles = []
    try:
        handles.append(model.register_forward_pre_hook(current.begin, with_kwargs=True))
        for name in names:
            handles.append(model.get_submodule(name).register_forward_hook(_Site(name, items, current)))
        yield model
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def capture(
    model: nn.Module, sites: Sequence[str], positions: Positions | str = "prompt", **inputs: Any
) -> list[Mapping[str, Tensor]]:
    """Run the model on `inputs` and keep hidden states. → for each sample: site → [k, d] at the chosen positions

    Raises `ModelError` for sites that the model lacks, `RequestError` for positions outside a prompt.
    """
    where = Positions.parse(positions) if isinstance(positions, str) else positions
    modules = dict(model.named_modules())
    missing = [name for name in sites if name not in modules]
    if missing:
        raise ModelError(f"the model has no module {missing[0]!r}{nearest(missing[0], modules)}")
    current = ForwardPass()
    found: dict[str, Tensor] = {}
    handles = [model.register_forward_pre_hook(current.begin, with_kwargs=True)]
    try:
        for name in sites:
            handles.append(modules[name].register_forward_hook(_recorder(found, name)))
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    samples = range(len(current.columns))
    return [{name: h[sample, current.chosen(sample, where)] for name, h in found.items()} for sample in samples]


def _recorder(found: dict[str, Tensor], name: str):
    def record(module: nn.Module, args: tuple, output: Any) -> None:
        found[name] = hidden_of(output)

    return record
