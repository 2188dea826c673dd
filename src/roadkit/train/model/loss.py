"""The loss of the answers: the language-model head computed for the tokens that bear it, and for no others.

    loss, count = answer_loss(model, batch)      # summed over the loss-bearing tokens, and their number

A vocabulary is the widest thing in a small model: scoring prompts and padding too costs a third of a forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from ..data.tokens import IGNORED


def answer_loss(model: nn.Module, batch: Mapping[str, Tensor], head: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """Summed cross entropy (nats) of the tokens that `batch["labels"]` [rows, tokens] marks, and how many they are.

    head    the output embedding, for a wrapper that does not tell which it is
    """
    logits, targets = answer_logits(model, batch, head)
    return cross_entropy(logits, targets, reduction="sum"), torch.as_tensor(len(targets), device=targets.device)


def answer_logits(
    model: nn.Module, batch: Mapping[str, Tensor], head: nn.Module | None = None
) -> tuple[Tensor, Tensor]:
    """→ logits [loss-bearing tokens, vocabulary] in float32, and the tokens that they should predict.

    The head is given only the hidden states that predict those tokens. What the model does to logits afterwards
    (scaling, capping) it does to these.
    """
    targets = pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    bears = targets != IGNORED
    if head is None:
        head = model.get_output_embeddings()  # type: ignore[operator]
    assert head is not None, f"{type(model).__name__} has no output embedding"

    def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][bears], *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        rest = {key: value for key, value in batch.items() if key != "labels"}
        logits = model(**rest, use_cache=False).logits
    finally:
        handle.remove()
    return logits.float(), targets[bears]
