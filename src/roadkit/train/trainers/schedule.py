"""How many steps a run takes, and how its learning rate moves.

steps = num_steps(recipe, rows=800)                  # 300 of 8 rows in 3 epochs
SCHEDULERS[recipe.schedule], num_warmup_steps(recipe, steps)        # "linear", 30
"""

from __future__ import annotations

import math

from ..recipe import Recipe

SCHEDULERS = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant_with_warmup",
}  # the recipe's → transformers'


def num_steps(recipe: Recipe, *, rows: int) -> int:
    """Steps of the optimiser over so many rows (sequences, if they are packed)."""
    if recipe.max_steps is not None:
        return recipe.max_steps
    return math.ceil(recipe.epochs * math.ceil(rows / (recipe.batch_size * recipe.gradient_accumulation)))


def num_warmup_steps(recipe: Recipe, steps: int) -> int:
    """Steps, of `steps`, in which the learning rate rises."""
    return int(recipe.warmup) if recipe.warmup >= 1 else math.ceil(steps * recipe.warmup)
