"""The eight commonsense tasks as LLM-Adapters asks and scores them: one instruction, one answer word.

    extract("piqa", "the correct answer is solution2")       # "solution2"
    table = load("hellaswag", Path("data"), train=False)     # rows with instruction, output, answer

Source: arXiv 2304.01933, commonsense_evaluate.py of AGI-Edgerunners/LLM-Adapters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..train.data import Table
from .files import find_rows

ANSWERS = {
    "boolq": "true|false",
    "piqa": "solution1|solution2",
    "siqa": "answer1|answer2|answer3",
    "hellaswag": "ending1|ending2|ending3|ending4",
    "winogrande": "option1|option2",
    "arc_easy": "answer1|answer2|answer3|answer4|answer5",
    "arc_challenge": "answer1|answer2|answer3|answer4|answer5",
    "openbookqa": "answer1|answer2|answer3|answer4",
}
TRAINED = ("boolq", "arc_easy", "arc_challenge", "openbookqa")  # whose training rows the small scale has
OTHER_NAMES = {"siqa": "social_i_qa", "hellaswag": "hellaswag_sub"}  # the latter a sample of 1,000 rows
PREFIX = "the correct answer is "


def extract(task: str, text: str) -> str:
    """The first answer word of the task, case-sensitive; empty where there is none, which counts as wrong."""
    found = re.search(ANSWERS[task], text.strip())
    return found.group() if found else ""


def extract_strict(text: str) -> str:
    """LoReFT's rule: what follows "the correct answer is ", to be compared whole."""
    return text.partition(PREFIX)[2].strip()


def load(task: str, data: Path, *, train: bool) -> Table:
    """A task's rows (instruction, output, answer) below `data`/commonsense."""
    names = [f"{name}_{'train' if train else 'test'}" for name in (task, OTHER_NAMES.get(task, task))]
    table = find_rows(data / "commonsense", *names)
    return Table([render(row) if "endings" in row else dict(row) for row in table.rows], table.numbers, table.origin)


def render(row: Mapping[str, Any]) -> dict[str, str]:
    """HellaSwag's context and four endings as LLM-Adapters writes them."""
    endings = " ".join(f"Ending{i}: {ending}" for i, ending in enumerate(row["endings"], 1))
    answer = f"ending{int(row['label']) + 1}"
    return {
        "instruction": f"Please choose the correct ending to complete the given sentence: {row['ctx']}\n\n{endings}\n\n"
        "Answer format: ending1/ending2/ending3/ending4",
        "input": "",
        "output": PREFIX + answer,
        "answer": answer,
    }
