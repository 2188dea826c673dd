"""The eight commonsense tasks as LLM-Adapters asks and scores them: one instruction, one answer word.

    extract("piqa", "the correct answer is solution2")       # "solution2"
    table = load("hellaswag", Path("data"), train=False)     # its rows have instruction, output, answer

Sources: arXiv 2304.01933, AGI-Edgerunners/LLM-Adapters, commonsense_evaluate.py (prompt, extract_answer) and dataset/;
the strict rule is that of stanfordnlp/pyreft, examples/loreft/compute_metrics.py with task_config.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roadkit.train.data.tables import Table

from ..data import read_rows

NUMBERED = "answer1|answer2|answer3|answer4|answer5"  # one pattern for four tasks, though two have fewer answers
ANSWERS = {
    "boolq": "true|false",
    "piqa": "solution1|solution2",
    "siqa": NUMBERED,
    "hellaswag": "ending1|ending2|ending3|ending4",
    "winogrande": "option1|option2",
    "arc_easy": NUMBERED,
    "arc_challenge": NUMBERED,
    "openbookqa": NUMBERED,
}
TRAINED = ("boolq", "arc_easy", "arc_challenge", "openbookqa")  # the small scale trains on the rows of these four
PREFIX = "the correct answer is "
RESPONSE = "### Response:"  # LLM-Adapters splits prompt and continuation at it and keeps the second piece


def extract(task: str, text: str) -> str:
    """The first answer word before a further "### Response:", case-sensitive. If there is none it is empty: a wrong answer."""
    found = re.search(ANSWERS[task], text.partition(RESPONSE)[0])
    return found.group() if found else ""


def extract_strict(text: str) -> str:
    """LoReFT's rule: what follows the first "the correct answer is ", to be compared whole; empty without it."""
    return text.partition(PREFIX)[2].strip()


def file_of(task: str, *, train: bool) -> str:
    """The name of a task's rows in `paper.data`."""
    return f"commonsense/{task}_{'train' if train else 'test'}"


def load(task: str, data: Path | None, *, train: bool) -> Table:
    """A task's rows with instruction, output and answer. `data` is the folder of `read_rows`."""
    (table,) = read_rows(data, file_of(task, train=train))
    return Table([render(row) if "endings" in row else dict(row) for row in table.rows], table.numbers, table.origin)


def render(row: Mapping[str, Any]) -> dict[str, str]:
    """HellaSwag's context (after its activity, if the row names one) and four endings, as LLM-Adapters writes them."""
    activity = f"{row['activity_label']}: " if row.get("activity_label") else ""
    endings = " ".join(f"Ending{i}: {ending}" for i, ending in enumerate(row["endings"], 1))
    answer = f"ending{int(row['label']) + 1}"
    return {
        "instruction": f"Please choose the correct ending to complete the given sentence: {activity}{row['ctx']}\n\n"
        f"{endings}\n\nAnswer format: ending1/ending2/ending3/ending4",
        "input": "",
        "output": PREFIX + answer,
        "answer": answer,
    }
