"""LoReFT, the baseline: Φ(h) = h + Rᵀ(W h + c − R h), R [rank, d] with orthonormal rows; with subspaces where asked for.

    edits = published(model, INSTRUCT)
    losses = train_edits(model, edits, rows, tasks=[TASK], learning_rate=9e-4)
    texts = answer(model, tokenizer, edits, prompts, 32)

pyreft needs pyvene, whose releases pin an older transformers than this project's, so the published formula
(arXiv 2404.03592, eq. 3; stanfordnlp/pyreft, LoreftIntervention and the composition notebook's subspaces) is written out
here, with torch's own orthogonal parametrisation as theirs uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from roadkit.intervene import Positions, site
from roadkit.intervene.sites import blocks, hidden_size
from roadkit.intervene.training import Edits, edited

from .generation import complete

DEPTH = 32  # blocks of LLaMA-7B, which the recipes count


@dataclass(frozen=True)
class Published:
    """One of LoReFT's recipes: which blocks of 32 (none: all), rank, tokens at each end, whether the ends share an edit."""

    layers: tuple[int, ...]
    rank: int
    ends: int
    shared: bool


# pyreft, examples/loreft/README.md
INSTRUCT = Published((3, 9, 18, 24), 4, 5, shared=False)  # -l 3;9;18;24 -r 4 -p f5+l5
REASONING = Published((), 8, 7, shared=True)  # commonsense and math: -l all -r 8 -p f7+l7 --share_weights
TASK = ""  # the name of the only task


class LoreftEdit(nn.Module):
    """h [n, d] → h + Σ over the ranks r of the active tasks: R_r (W h + c − R h)_r.

    tasks   how many ranks each task owns, in order; rank = their sum (the notebook: 8 as 4 + 4)
    """

    def __init__(self, width: int, tasks: Sequence[int]):
        super().__init__()
        rank = sum(tasks)
        rotate = nn.Linear(width, rank, bias=False)
        nn.init.orthogonal_(rotate.weight)
        self.rotate = orthogonal(rotate)
        self.source = nn.Linear(width, rank)
        owner = torch.repeat_interleave(torch.arange(len(tasks)), torch.tensor(tasks))
        self.register_buffer("owns", owner == torch.arange(len(tasks)).unsqueeze(1))  # [tasks, rank]

    owns: Tensor

    def forward(self, h: Tensor, active: Tensor) -> Tensor:
        """active [n, tasks] bool"""
        ranks = (active.unsqueeze(2) & self.owns).any(dim=1)  # [n, rank]
        difference = (self.source(h) - self.rotate(h)) * ranks
        return h + difference @ self.rotate.weight


def published(model: Any, recipe: Published) -> dict[tuple[str, Positions], LoreftEdit]:
    """Fresh edits of a published recipe, none of which has dropout.

    In a model of other depth than 32 the blocks are in proportion, rounded down. A prompt's first tokens have one edit,
    its last ones another, or the same. Where pyreft halves a prompt too short for both ends, the ends overlap here, and
    a prompt shorter than one end is refused.
    """
    depth, width = len(blocks(model)), hidden_size(model)
    layers = [layer * depth // DEPTH for layer in recipe.layers] or range(depth)
    sites = dict.fromkeys(site(model, layer) for layer in layers)

    def fresh() -> dict[str, LoreftEdit]:
        return {name: LoreftEdit(width, [recipe.rank]).to(model.device) for name in sites}

    first = fresh()
    last = first if recipe.shared else fresh()
    ends = {Positions(first=recipe.ends): first, Positions(last=recipe.ends): last}
    return {(name, end): edit for end, edits in ends.items() for name, edit in edits.items()}


def answer(model: Any, tokenizer: Any, edits: Edits, prompts: Sequence[str], new_tokens: int) -> list[str]:
    """Greedy answers under edits of one task."""
    return complete(
        model, tokenizer, prompts, new_tokens, around=lambda part: edited(model, edits, [[True]] * len(part))
    )
