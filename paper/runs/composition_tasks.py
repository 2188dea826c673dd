"""The composition experiment's tasks: rows of each as prompts and completions, some to train on and some held out.

    options = {"model": "smollm2", "rows": 64, "held_out": 48, "max_length": 96}
    rows, held_out = load_task("german", None, tokenizer, scale="small", **options)

The full scale has the paper's two tasks. At small scale German Wikipedia's sentences, cut in two, stand in for HellaSwag_de.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from roadkit.errors import RecipeError
from roadkit.intervene.training import TaskRow, encode_tasks
from roadkit.train.data.tables import Row, Table
from roadkit.train.recipe import Recipe

from ..data import read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# of the notebook that the paper follows, without its first sentence
TEMPLATE = "### Instruction:\n{}\n\n### Response:\n"
MAX_PROMPT = 240  # characters; longer ones would leave no room for an answer at the small scale's length
TASK_ROWS = {  # scale → task → the names of its rows (`paper.data`): to train on, and held out if they have their own
    "small": {
        "german": ("german/de_wiki_completion_train", "german/de_wiki_completion_dev"),
        "instruct": ("instruct/ultrafeedback_1k",),
        "arithmetic": ("math/mawps_train_clean", "math/mawps_test"),
        "sentiment": ("glue/sst2_sentences_train", "glue/sst2_dev"),
    },
    "full": {"german": ("german/hellaswag_de",), "instruct": ("instruct/ultrafeedback",)},
}


def load_task(
    task: str,
    data: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    scale: str,
    model: str,
    rows: int,
    held_out: int,
    max_length: int,
    seed: int = 0,
) -> tuple[list[TaskRow], list[TaskRow]]:
    """`rows` rows to train on and `held_out` others, drawn by the seed. Raises `RecipeError` if there are too few.

    data   the folder of `read_rows`
    """
    tables = read_rows(data, *TASK_ROWS[scale][task])
    train, *others = (_pairs(table, task) for table in tables)
    shuffle = random.Random(seed)
    train = shuffle.sample(train, len(train))
    other = shuffle.sample(others[0], len(others[0])) if others else train[rows:]
    if len(train) < rows or len(other) < held_out:
        raise RecipeError(
            f"{task}: {rows} rows to train on and {held_out} held out are asked for, "
            f"there are {len(train)} and {len(other)}"
        )
    origin = tables[0].origin
    recipe = Recipe(model=model, data=origin, output="", max_length=max_length, chat_template=False)
    encoded = []
    for part in (train[:rows], other[:held_out]):
        table = Table([{**pair, "subspace": task} for pair in part], list(range(1, len(part) + 1)), origin)
        encoded.append(encode_tasks(recipe, tokenizer, table=table))
    return encoded[0], encoded[1]


def _pairs(table: Table, task: str) -> list[dict[str, str]]:
    """Prompts and completions; rows without a completion, or with a prompt that is too long, are left out."""
    pairs = (_asked_and_answered(row, task) for row in table)
    return [
        {"prompt": TEMPLATE.format(asked.strip()), "completion": answered.strip()}
        for asked, answered in pairs
        if answered.strip() and len(asked) <= MAX_PROMPT
    ]


def _asked_and_answered(row: Row, task: str) -> tuple[str, str]:
    if task == "sentiment":
        review = f"Is this review positive or negative?\n{row.text('sentence1')}"
        return review, "positive" if int(row.value("label")) else "negative"
    if task == "arithmetic":
        return row.cells.get("question") or row.text("instruction"), f"{float(row.value('answer')):g}"
    return row.text("instruction"), row.text("output")
