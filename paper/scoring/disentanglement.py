"""What a classifier needs of a representation: its length, its direction, or both (RoAd §3.1, second study).

    probe = Probe(384, 2, part="angle")
    probe(x=features, labels=labels)["loss"]

A two-layer classifier on frozen features x, first weight W with rows w_i; its first layer gives, for row i,

    output      w_i · x             as usual
    magnitude   ‖w_i‖ ‖x‖           lengths alone
    angle       cos(w_i, x)         directions alone

so output = magnitude × angle. A ReLU and a linear layer follow. The ReLU is our choice: magnitudes are never negative, and a
tanh would be flat there. The first layer has no bias, because a bias is neither length nor direction.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

Part = Literal["output", "magnitude", "angle"]
PARTS: tuple[Part, ...] = get_args(Part)


def first_layer(x: Tensor, weight: Tensor, part: Part) -> Tensor:
    """The first layer's output. x [n, d], weight [hidden, d] → [n, hidden]."""
    if part == "output":
        return x @ weight.T
    if part == "magnitude":
        return x.norm(dim=-1, keepdim=True) * weight.norm(dim=-1)
    return nn.functional.normalize(x, dim=-1) @ nn.functional.normalize(weight, dim=-1).T


class Probe(nn.Module):
    """The classifier, or a regression if `num_labels` is 1. transformers' trainer can train it.

    Raises `ValueError` for an unknown part.
    """

    def __init__(self, width: int, num_labels: int, *, part: Part):
        super().__init__()
        if part not in PARTS:
            raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
        self.part: Part = part
        self.weight = nn.Parameter(torch.empty(width, width))
        nn.init.normal_(self.weight, std=width**-0.5)
        self.head = nn.Linear(width, num_labels)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """x [n, d] → logits [n, num_labels], and with labels their loss."""
        logits = self.head(torch.relu(first_layer(x, self.weight, self.part)))
        if labels is None:
            return {"logits": logits}
        if self.head.out_features == 1:
            return {"loss": nn.functional.mse_loss(logits.squeeze(-1), labels.float()), "logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
