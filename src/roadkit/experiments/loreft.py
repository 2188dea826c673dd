"""LoReFT with subspaces, the baseline: Φ(h) = h + Rᵀ(W h + c − R h), R [rank, d] with orthonormal rows.

pyreft needs pyvene, whose releases pin an older transformers than this project's, so the published formula
(arXiv 2404.03592, eq. 3; stanfordnlp/pyreft, LoreftIntervention and the composition notebook's subspaces) is written out
here, with torch's own orthogonal parametrisation as theirs uses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal


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
