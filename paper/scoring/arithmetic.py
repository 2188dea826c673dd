"""Arithmetic word problems as LLM-Adapters scores them: the last number of the text, or AQuA's first letter.

    correct("gsm8k", "So 1,200 - 200 = 1,000.", "1000")      # True
    correct("aqua", "The answer is B.", "B")                 # True

Source: AGI-Edgerunners/LLM-Adapters, evaluate.py (extract_answer_number, extract_answer_letter, the tolerance). It has no
rule for MAWPS: stanfordnlp/pyreft, examples/loreft/compute_metrics.py, scores MAWPS by the number, as here. That file
also reads past a further "### Response:", where this one and LLM-Adapters stop.

Math10K contains MAWPS rows that are also tested on; `load` reads training files that do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roadkit.train.data.tables import Table

from .commonsense import RESPONSE
from .files import find_rows

TASKS = ("aqua", "gsm8k", "mawps", "svamp")
TRAINED = {"gsm8k": "gsm8k_official_train", "mawps": "mawps_train_clean"}
TOLERANCE = 1e-3
_NUMBER = re.compile(r"-?\d+\.?\d*")


def extract_number(text: str) -> float:
    """The last number before a further "### Response:", commas removed; infinity where there is none."""
    found = _NUMBER.findall(text.partition(RESPONSE)[0].replace(",", ""))
    return float(found[-1]) if found else float("inf")


def extract_letter(text: str) -> str:
    """The first of A to E, anywhere, even inside a word, as the published rule has it; empty where there is none."""
    found = re.search("A|B|C|D|E", text.partition(RESPONSE)[0])
    return found.group() if found else ""


def correct(task: str, text: str, answer: str | float) -> bool:
    """Within 0.001 of the number; for AQuA the same letter."""
    if task == "aqua":
        return extract_letter(text) == str(answer)
    return abs(extract_number(text) - float(str(answer).replace(",", ""))) <= TOLERANCE


def load(task: str, data: Path, *, train: bool) -> Table:
    """A task's rows (instruction, output, answer) below `data`/math."""
    table = find_rows(data / "math", TRAINED.get(task, f"{task}_train") if train else f"{task}_test")
    return Table([render(row) if train else dict(row) for row in table.rows], table.numbers, table.origin)


def render(row: Mapping[str, Any]) -> dict[str, str]:
    """GSM8K's rationale without its calculator marks, or MAWPS's equation, and the answer in a sentence at the end."""
    if "equation" in row:
        steps, answer = row["equation"].removeprefix("X="), f"{float(row['answer']):g}"
    else:
        steps, _, answer = row["answer"].partition("####")
        steps, answer = re.sub(r"<<.*?>>", "", steps).strip(), answer.strip()
    output = f"{steps}\nThe answer is {answer}."
    return {"instruction": row["question"], "input": "", "output": output, "answer": answer}
