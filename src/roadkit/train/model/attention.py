"""Which attention a training step computes with: torch's fused one, or the plain one for short rows in 16 bits on the CPU.

    with attention_for(model, recipe, width=256):
        loss = step(batch)

The backward pass of torch's fused attention is slow on the CPU in 16 bits; the plain one keeps every attention matrix,
which grows with the square of the length. `roadkit bench attention` measures both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..recipe import Recipe

FUSED, PLAIN = "sdpa", "eager"  # transformers' names
SHORT = 128  # tokens; 1.3 × the speed and the memory there, and beyond it soon only the memory


@contextmanager
def attention_for(model: Any, recipe: Recipe, *, width: int) -> Iterator[None]:
    """Inside, the model has the attention that is faster for rows of `width` tokens; afterwards the one it had.

    Encoders gain nothing and keep the fused one. So do packed rows and recipes that save memory. A model that was loaded
    with another attention keeps that.
    """
    slow = recipe.task == "causal" and recipe.bf16 and model.device.type == "cpu"
    free = not (recipe.packing or recipe.gradient_checkpointing)
    ours = model.config._attn_implementation == FUSED and model._can_set_attn_implementation()
    if not (slow and free and ours) or width > SHORT:
        yield
        return
    model.set_attn_implementation(PLAIN)
    try:
        yield
    finally:
        model.set_attn_implementation(FUSED)
