"""LoReFT, a method to compare with: Φ(h) = h + Rᵀ(W h + c − R h), where R [rank, d] has orthonormal rows.

    edits = published_edits(model, LOREFT_INSTRUCT)
    losses = train_edits(model, edits, rows, tasks=[TASK], learning_rate=9e-4)
    texts = answer_with_edits(model, tokenizer, edits, prompts, 32)

The ranks can be shared out among tasks, each of which then has a subspace of its own.

Source: arXiv 2404.03592, eq. 3; stanfordnlp/pyreft, LoreftIntervention, and the subspaces of its composition notebook. The
formula is written out here because pyreft needs pyvene, whose releases pin an older transformers than this project's. As
in pyreft, R is kept orthonormal by torch's parametrisation.
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

from .generation import answer_greedily

DEPTH = 32  # blocks of LLaMA-7B, for which the published settings number the layers


@dataclass(frozen=True)
class LoreftSettings:
    """One of LoReFT's published settings.

    layers   blocks that are edited, of 32; empty: all
    ends     tokens that are edited at each end of the prompt
    shared   whether both ends have one edit, or each its own
    """

    layers: tuple[int, ...]
    rank: int
    ends: int
    shared: bool


# pyreft, examples/loreft/README.md
LOREFT_INSTRUCT = LoreftSettings((3, 9, 18, 24), 4, 5, shared=False)  # -l 3;9;18;24 -r 4 -p f5+l5
# commonsense and math: -l all -r 8 -p f7+l7 --share_weights
LOREFT_REASONING = LoreftSettings((), 8, 7, shared=True)
TASK = ""  # the name of the only task


class LoreftEdit(nn.Module):
    """h [n, d] → h + Σ over the ranks r of the active tasks: R_r (W h + c − R h)_r.

    tasks   how many ranks each task owns, in order; the rank is their sum (the notebook: 8 as 4 + 4)
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
        """h [n, d] edited by the tasks that `active` [n, tasks] (bool) switches on."""
        ranks = (active.unsqueeze(2) & self.owns).any(dim=1)  # [n, rank]
        difference = (self.source(h) - self.rotate(h)) * ranks
        return h + difference @ self.rotate.weight


def published_edits(model: Any, settings: LoreftSettings) -> dict[tuple[str, Positions], LoreftEdit]:
    """Fresh edits with published settings, without dropout. A prompt's first tokens have one edit, its last ones another.

    If the model has not 32 blocks, the layers are chosen in proportion, rounded down. pyreft halves a prompt that is too
    short for both ends; here the ends overlap, and a prompt shorter than one end is refused.
    """
    depth, width = len(blocks(model)), hidden_size(model)
    layers = [layer * depth // DEPTH for layer in settings.layers] or range(depth)
    sites = dict.fromkeys(site(model, layer) for layer in layers)

    def fresh() -> dict[str, LoreftEdit]:
        return {name: LoreftEdit(width, [settings.rank]).to(model.device) for name in sites}

    first = fresh()
    last = first if settings.shared else fresh()
    ends = {Positions(first=settings.ends): first, Positions(last=settings.ends): last}
    return {(name, end): edit for end, edits in ends.items() for name, edit in edits.items()}


def answer_with_edits(model: Any, tokenizer: Any, edits: Edits, prompts: Sequence[str], new_tokens: int) -> list[str]:
    """Greedy answers of the model under edits of one task."""
    return answer_greedily(
        model, tokenizer, prompts, new_tokens, around=lambda batch: edited(model, edits, [[True]] * len(batch))
    )
