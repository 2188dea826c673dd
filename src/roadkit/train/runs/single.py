"""One training run from recipe to adapter.

result = run(Recipe(model="smollm2", data="answers.jsonl", output="adapters/json"))
result.adapter, result.metrics["loss"], result.seconds
"""

from __future__ import annotations

import importlib.util
import time
from typing import TYPE_CHECKING

from ...errors import RecipeError
from ..data.training_data import prepare_data
from ..model.base import check_both_or_neither
from ..output.result import TrainResult
from ..progress import Progress
from ..recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def run(
    recipe: Recipe,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train one adapter and write it to `recipe.output`, with a model card.

    model, tokenizer    already loaded (both or none); afterwards the model is as it was before
    progress            called after every step and evaluation

    Raises `RecipeError` for a recipe or data that cannot be used, a loss that is no number, and a checkpoint that
    belongs to something else; `ModelError` for a base model that cannot be loaded.
    """
    start = time.perf_counter()
    check_both_or_neither(model, tokenizer)
    if recipe.tensorboard and not any(map(importlib.util.find_spec, ("tensorboard", "tensorboardX"))):
        raise RecipeError("tensorboard: true needs the package: pip install tensorboard")
    data = prepare_data(recipe, model=model, tokenizer=tokenizer)

    from .single_training import train_single  # torch, PEFT and TRL take seconds: only once the data is read

    return train_single(data, model, progress=progress, start=start)
