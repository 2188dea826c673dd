"""Many adapters in one run: a data set with a column `adapter`, one frozen base, an adapter out for every name in it.

    result = run_many(Recipe(model="smollm2", data="customers.jsonl", output="adapters"))
    result.adapters["acme"].metrics["loss"]          # adapters/acme is a PEFT directory

Every pass of the base carries rows of many adapters, each rotated by its own. An adapter's loss is the mean over its
own tokens; its optimiser, its schedule and the order of its rows are its own. So it ends as a run of its own would,
whatever the others do. An adapter whose loss stops being a number leaves, and the others go on.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ... import models
from ...errors import RecipeError
from ..data.tables import read_table
from ..data.training_data import TrainingData, prepare_data
from ..model.base import check_both_or_neither
from ..output.result import ManyResult
from ..progress import Progress
from ..recipe import Recipe
from ..trainers.processes import num_processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ONE_BY_ONE = (  # keys of a recipe that need a run for each adapter
    "lora", "modules_to_save", "head_learning_rate", "packing", "eval_data", "eval_fraction", "best", "save_steps",
    "resume", "tensorboard",
)  # fmt: skip
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]*")


def run_many(
    recipe: Recipe,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Progress | None = None,
) -> ManyResult:
    """Train an adapter for every name in the data's `adapter` column (`columns: {adapter: customer}` renames it).

    Each step gives every adapter that is not done `batch_size` × `gradient_accumulation` rows of its own. Adapters go to
    `recipe.output`/name.
    model, tokenizer    already loaded (both or none); afterwards the model is as it was before
    progress            called after every step

    Raises `RecipeError` as `run` does, for a name that no adapter can have, for options that need a run each, and if not
    one adapter came through.
    """
    start = time.perf_counter()
    check_both_or_neither(model, tokenizer)
    _check(recipe)
    tokenizer = tokenizer or models.load_tokenizer(recipe.model)
    parts = _prepare_each(recipe, model, tokenizer)

    from .joint_training import train_jointly  # torch and transformers take seconds: only once the data is read

    return train_jointly(parts, model, progress=progress, start=start)


def _check(recipe: Recipe) -> None:
    defaults = Recipe(model="", data="", output="")
    asked = [key for key in ONE_BY_ONE if getattr(recipe, key) != getattr(defaults, key)]
    if asked or recipe.task != "causal":
        what = ", ".join(asked) or f"task {recipe.task}"
        raise RecipeError(f"many adapters in one run: {what} needs a run for each adapter")
    if num_processes() > 1:
        raise RecipeError("many adapters in one run: one process trains them, several are not supported")


def _prepare_each(
    recipe: Recipe, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase
) -> list[TrainingData]:
    """The data of each adapter, prepared as for a run of its own."""
    table = read_table(recipe.data, split=recipe.split, limit=recipe.max_examples)
    column = recipe.columns.get("adapter", "adapter")
    tables = table.partition(column)
    for name, rows in tables.items():
        if not NAME.fullmatch(name):
            raise RecipeError(f"{rows[0].where_is(column)}: {name[:60]!r} is no adapter's name")

    from ..output.directory import check_output  # imports torch: only once the names are read

    parts = []
    for name, rows in tables.items():
        own = Recipe(**recipe.model_dump() | {"output": str(Path(recipe.output) / name)})
        check_output(own.output, own)
        parts.append(prepare_data(own, model=model, tokenizer=tokenizer, table=rows))
    return parts
