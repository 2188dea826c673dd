"""How the tasks of a trained arm act on the model: alone, together, or not at all.

acting = acting_subspaces(model, intervention)
with acting(["german"], 2, [12, 9]):        # two rows, whose prompts have 12 and 9 tokens
    model(**batch)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from torch import nn

from roadkit.intervene import Intervention, Positions, intervened
from roadkit.intervene.training import edited

# (the tasks that act, number of rows, tokens of each row's prompt; None: rows are prompts) → a context in which they act
Acting = Callable[[Sequence[str], int, Sequence[int] | None], AbstractContextManager]


def acting_subspaces(model: nn.Module, tasks: Intervention) -> Acting:
    """Tasks with a subspace each, in one intervention."""
    return lambda active, count, num_prompt: intervened(
        model, tasks.select(*active) if active else [None] * count, num_prompt=num_prompt
    )


def acting_product(model: nn.Module, wholes: Mapping[str, Intervention]) -> Acting:
    """Tasks with an intervention each; several of them act one after the other."""

    def context(active: Sequence[str], count: int, num_prompt: Sequence[int] | None) -> AbstractContextManager:
        product: Intervention | None = None
        for task in active:
            whole = dataclasses.replace(wholes[task], subspaces={})
            product = whole if product is None else product.then(whole)
        return intervened(model, product if product else [None] * count, num_prompt=num_prompt)

    return context


def acting_edit(model: nn.Module, site: str, edit: nn.Module, tasks: Sequence[str], positions: Positions) -> Acting:
    """Tasks with ranks each, in one LoReFT edit of a site."""

    def context(active: Sequence[str], count: int, num_prompt: Sequence[int] | None) -> AbstractContextManager:
        flags = [[task in active for task in tasks]] * count
        return edited(model, {(site, positions): edit}, flags, num_prompt=num_prompt)

    return context
