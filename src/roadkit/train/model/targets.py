"""Which of a model's modules a recipe trains: the linear layers that are rotated, and the modules trained whole.

target_layers(model, recipe)         # {"model.layers.0.self_attn.q_proj": Linear(…), …}
head_names(model, recipe)            # ["classifier"]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from ...errors import RecipeError, nearest
from ...modules import linear_layers, width_of
from ...rotation import check_group_size
from ..recipe import Recipe


def head_names(model: PreTrainedModel, recipe: Recipe) -> list[str]:
    """Full names of the modules trained and saved whole: the recipe's, else the new head of a classifier or regressor.

    Raises `RecipeError` for a name that no module has.
    """
    if recipe.modules_to_save is not None:
        known = dict(model.named_modules())
        found = {
            asked: [name for name in known if name == asked or name.endswith("." + asked)]
            for asked in recipe.modules_to_save
        }
        if missing := [name for name, matches in found.items() if not matches]:
            leaves = sorted({name.rsplit(".", 1)[-1] for name in known if name})
            raise RecipeError(
                f"modules_to_save: the model has no module {missing[0]!r}{nearest(missing[0], leaves)}; "
                f"its children are {', '.join(name for name, _ in model.named_children())}"
            )
        return sorted({name for matches in found.values() for name in matches})
    if recipe.task == "causal":
        return []
    return [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    ]


def in_heads(name: str, heads: Sequence[str]) -> bool:
    """Does the parameter of this full name, wrapped by PEFT or not, belong to one of the heads?"""
    return any(f".{head}." in f".{name}." for head in heads)


def target_layers(model: PreTrainedModel, recipe: Recipe) -> dict[str, nn.Module]:
    """The layers to rotate, by full name. Raises `RecipeError` listing the candidates, or a group size that fits."""
    heads = tuple(f"{head}." for head in head_names(model, recipe))
    candidates = {name: layer for name, layer in linear_layers(model).items() if not f"{name}.".startswith(heads)}
    if recipe.target_modules == "all-linear":
        chosen = candidates
    else:
        matches = {  # the layer of that name, or all layers inside the module of that name
            target: [name for name in candidates if f".{target}." in f".{name}."] for target in recipe.target_modules
        }
        leaves = sorted({name.rsplit(".", 1)[-1] for name in candidates})
        if missing := [target for target, names in matches.items() if not names]:
            raise RecipeError(
                f"target_modules: {', '.join(missing)} match{'es' if len(missing) == 1 else ''} no linear layer"
                f"{nearest(missing[0], leaves)}; candidates: {', '.join(leaves)}, or a module that holds such"
            )
        wanted = {name for names in matches.values() for name in names}
        chosen = {name: layer for name, layer in candidates.items() if name in wanted}
    if not chosen:
        raise RecipeError(f"the model ({type(model).__name__}) has no linear layer to rotate")
    _check_widths(chosen, recipe.group_size)
    return chosen


def _check_widths(layers: dict[str, nn.Module], group_size: int) -> None:
    widths = {name: width_of(layer) or 0 for name, layer in layers.items()}
    misfits = {name: width for name, width in widths.items() if width % group_size}
    if not misfits:
        return
    name, width = next(iter(misfits.items()))
    common = math.gcd(*widths.values())
    fitting = [size for size in range(2, group_size + 1, 2) if common % size == 0]
    if fitting:
        raise RecipeError(
            f"group_size {group_size} does not divide {name}'s width {width}"
            + (f" (and {len(misfits) - 1} other layers')" if len(misfits) > 1 else "")
            + f"; group_size: {fitting[-1]} fits all {len(layers)} layers"
        )
    for name, width in misfits.items():  # no size fits all, so the message is about one layer
        check_group_size(width, group_size, name)
