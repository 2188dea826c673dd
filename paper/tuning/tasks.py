"""The composition experiment's data: each task a file or a hub data set, as prompts and completions.

    train, held_out = load_task("german", Path("data"), tokenizer, model="smollm2", rows=64, held_out=48)

`SMALL` names stand-ins of `../shared/data` (the German one: sentences of German Wikipedia cut in two, instead of
HellaSwag_de); `FULL` is what the paper used, read from a hub.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roadkit.errors import RecipeError
from roadkit.intervene.training import TaskRow, encode_tasks
from roadkit.train.data.tables import Table, read_table
from roadkit.train.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE = (
    "### Instruction:\n{}\n\n### Response:\n"  # of the notebook that the paper follows, without its first sentence
)
MAX_PROMPT = 240  # characters; longer ones would leave no room for an answer at the small scale's length


@dataclass(frozen=True)
class Source:
    """Where a task's rows are; without `held_out`, the last rows of `train` are held out."""

    train: str
    held_out: str | None = None


SMALL = {
    "german": Source("german/de_wiki_completion_train.jsonl", "german/de_wiki_completion_dev.jsonl"),
    "instruct": Source("instruct/ultrafeedback_1k.jsonl.gz"),
    "arithmetic": Source("math/mawps_train_clean.jsonl", "math/mawps_test.jsonl"),
    "sentiment": Source("glue/sst2_sentences_train.jsonl", "glue/sst2_dev.jsonl"),
}
ULTRAFEEDBACK = "argilla/ultrafeedback-binarized-preferences-cleaned"  # what pyreft's training file was parsed from
FULL = {"german": Source("LeoLM/HellaSwag_de"), "instruct": Source(ULTRAFEEDBACK)}


def load_task(
    name: str,
    source: Source,
    root: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    model: str,
    rows: int,
    held_out: int,
    max_length: int,
    seed: int = 0,
) -> tuple[list[TaskRow], list[TaskRow]]:
    """`rows` rows to train on and `held_out` others, drawn by the seed. Raises `RecipeError` where there are too few."""
    train = _pairs(_read(root, source.train), name)
    other = _pairs(_read(root, source.held_out), name) if source.held_out else None
    shuffle = random.Random(seed)
    train = shuffle.sample(train, len(train))
    other = train[rows:] if other is None else shuffle.sample(other, len(other))
    if len(train) < rows or len(other) < held_out:
        raise RecipeError(
            f"{name}: {rows} rows to train on and {held_out} held out are asked for, "
            f"there are {len(train)} and {len(other)}"
        )
    recipe = Recipe(model=model, data=source.train, output="", max_length=max_length, chat_template=False)
    encoded = []
    for part in (train[:rows], other[:held_out]):
        table = Table([{**pair, "subspace": name} for pair in part], list(range(1, len(part) + 1)), source.train)
        encoded.append(encode_tasks(recipe, tokenizer, table=table))
    return encoded[0], encoded[1]


def _read(root: Path, name: str) -> Table:
    path = root / name
    return read_table(str(path) if path.exists() else name)


def _pairs(table: Table, task: str) -> list[dict[str, str]]:
    """Rows of any of the sources → prompt and completion."""
    pairs = (pair_of(row, task) for row in table.rows)
    return [
        {"prompt": TEMPLATE.format(pair["prompt"].strip()), "completion": pair["completion"].strip()}
        for pair in pairs
        if pair["completion"].strip() and len(pair["prompt"]) <= MAX_PROMPT
    ]


def pair_of(row: Mapping[str, Any], task: str) -> dict[str, str]:
    """A row of any of the sources → prompt and completion."""
    if "endings_de" in row:  # HellaSwag_de: the right ending, the last one where some are missing
        endings = row["endings_de"]
        ending = endings[int(row["label"])] if len(endings) == 4 else endings[-1]
        return {"prompt": row["ctx_de"] if "ctx_de" in row else row["ctx"], "completion": ending}
    if task == "sentiment":
        review = f"Is this review positive or negative?\n{row['sentence1']}"
        return {"prompt": review, "completion": "positive" if int(row["label"]) else "negative"}
    if task == "arithmetic":
        return {"prompt": row.get("question") or row["instruction"], "completion": f"{float(row['answer']):g}"}
    if "chosen" in row:  # UltraFeedback: the preferred answer
        return {"prompt": row["prompt"], "completion": row["chosen"][-1]["content"]}
    return {"prompt": row["instruction"], "completion": row["output"]}
