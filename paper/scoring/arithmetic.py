"""Arithmetic word problems as LLM-Adapters scores them: the last number of the text, or AQuA's first letter.

    correct("gsm8k", "So 1,200 - 200 = 1,000.", "1000")      # True
    correct("aqua", "The answer is B.", "B")                 # True

Source: AGI-Edgerunners/LLM-Adapters, evaluate.py (extract_answer_number, extract_answer_letter, the tolerance). It has no
rule for MAWPS: stanfordnlp/pyreft, examples/loreft/compute_metrics.py, scores MAWPS by the number, as here. That file
also reads past a further "### Response:"; LLM-Adapters and this module stop there.

Math10K holds MAWPS rows that are also tested on. The training files that `load` reads hold none of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roadkit.train.data.tables import Table

from ..data import read_rows
from .commonsense import RESPONSE

TASKS = ("aqua", "gsm8k", "mawps", "svamp")
TRAINED = {"gsm8k": "gsm8k_official_train", "mawps": "mawps_train_clean"}  # the small scale trains on these two
TOLERANCE = 1e-3
_NUMBER = re.compile(r"-?\d+\.?\d*")


def extract_number(text: str) -> float:
    """The last number before a further "### Response:", commas removed. If there is none it is infinity."""
    found = _NUMBER.findall(text.partition(RESPONSE)[0].replace(",", ""))
    return float(found[-1]) if found else float("inf")


def extract_letter(text: str) -> str:
    """The first of A to E, even inside a word, as the published rule has it. If there is none it is empty."""
    found = re.search("A|B|C|D|E", text.partition(RESPONSE)[0])
    return found.group() if found else ""


def correct(task: str, text: str, answer: str | float) -> bool:
    """Whether the text gives the answer: within 0.001 of the number; for AQuA the same letter."""
    if task == "aqua":
        return extract_letter(text) == str(answer)
    return abs(extract_number(text) - float(str(answer).replace(",", ""))) <= TOLERANCE


def file_of(task: str, *, train: bool) -> str:
    """The name of a task's rows in `paper.data`."""
    return f"math/{TRAINED.get(task, f'{task}_train') if train else f'{task}_test'}"


def load(task: str, data: Path | None, *, train: bool) -> Table:
    """A task's rows with instruction, output and answer. `data` is the folder of `read_rows`."""
    (table,) = read_rows(data, file_of(task, train=train))
    return Table([render(row) if train else dict(row) for row in table.rows], table.numbers, table.origin)


def render(row: Mapping[str, Any]) -> dict[str, str]:
    """A row to train on: GSM8K's rationale without its calculator marks, or MAWPS's equation, then the answer."""
    if "equation" in row:
        steps, answer = row["equation"].removeprefix("X="), f"{float(row['answer']):g}"
    else:
        steps, _, answer = row["answer"].partition("####")
        steps, answer = re.sub(r"<<.*?>>", "", steps).strip(), answer.strip()
    output = f"{steps}\nThe answer is {answer}."
    return {"instruction": row["question"], "input": "", "output": output, "answer": answer}
