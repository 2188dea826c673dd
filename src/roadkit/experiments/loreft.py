"""LoReFT, the baseline: Φ(h) = h + Rᵀ(W h + c − R h), R [rank, d] with orthonormal rows; with subspaces where asked for.

    edits = published(model)
    losses = train_edits(model, edits, rows, tasks=[TASK], learning_rate=9e-4)
    texts = answer(model, tokenizer, edits, prompts, new_tokens=32)

pyreft needs pyvene, whose releases pin an older transformers than this project's, so the published formula
(arXiv 2404.03592, eq. 3; stanfordnlp/pyreft, LoreftIntervention and the composition notebook's subspaces) is written out
here, with torch's own orthogonal parametrisation as theirs uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from ..intervene import Positions, site
from ..intervene.sites import blocks, hidden_size
from ..intervene.training import Edits, edited
from .generation import greedy

# pyreft, examples/loreft/README.md, instruction following: -l 3;9;18;24 -r 4 -p f5+l5 without --share_weights
LAYERS, DEPTH = (3, 9, 18, 24), 32  # of LLaMA-7B
RANK = 4
ENDS = (Positions(first=5), Positions(last=5))
TASK = ""  # the name of the only task
BATCH = 8  # prompts answered at a time


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


def published(model: Any) -> dict[tuple[str, Positions], LoreftEdit]:
    """Fresh edits of the published recipe for instruction tuning, which has no dropout.

    Rank 4 on the outputs of blocks 3, 9, 18 and 24 of 32, of a model of other depth in proportion, rounded down; the first
    five tokens of a prompt have one edit, the last five another. Where pyreft halves a prompt too short for both ends,
    the ends overlap here, and a prompt of less than five tokens is refused.
    """
    depth, width = len(blocks(model)), hidden_size(model)
    sites = dict.fromkeys(site(model, layer * depth // DEPTH) for layer in LAYERS)
    return {(name, end): LoreftEdit(width, [RANK]).to(model.device) for end in ENDS for name in sites}


def answer(model: Any, tokenizer: Any, edits: Edits, prompts: Sequence[str], *, new_tokens: int) -> list[str]:
    """Greedy answers under edits of one task."""
    texts: list[str] = []
    for at in range(0, len(prompts), BATCH):
        part = prompts[at : at + BATCH]
        with edited(model, edits, [[True]] * len(part)):
            texts += greedy(model, tokenizer, part, new_tokens=new_tokens)
    return texts
