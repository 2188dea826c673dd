"""Answers about pictures: GQA, ScienceQA, TextVQA and POPE, scored by their published rules over local rows.

    score("pope", answers, rows)        # {"accuracy": …, "precision": …, "recall": …, "f1": …, "yes": …}

rows: `answer` (GQA: a word; ScienceQA: the letter; POPE: yes or no), or TextVQA's `answers`, ten people's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import RecipeError, nearest

ARTICLES = {"a", "an", "the"}
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def normalize(text: str) -> str:
    """Lower case, no punctuation or articles, number words as digits: VQA's rule, so far as it concerns short answers."""
    words = re.sub(r"[^\w\s]", "", text.lower().strip()).split()
    return " ".join(str(WORDS.index(word)) if word in WORDS else word for word in words if word not in ARTICLES)


def gqa(answer: str, gold: str) -> bool:
    """Exact match after normalising."""
    return normalize(answer) == normalize(gold)


def scienceqa(answer: str, gold: str) -> bool:
    """The letter: an answer that is one, or that says "The answer is X."; otherwise wrong."""
    text = answer.strip()
    found = (
        re.fullmatch(r"([A-E])\.?", text) or re.search(r"answer is ([A-E])\b", text) or re.match(r"([A-E])\. ", text)
    )
    return found is not None and found.group(1) == gold


def textvqa(answer: str, golds: Sequence[str]) -> float:
    """min(people who said it / 3, 1), averaged over leaving each person out."""
    given, people = normalize(answer), [normalize(gold) for gold in golds]
    if not people:
        raise RecipeError("textvqa: a row has no answers")
    agree = [sum(other == given for i, other in enumerate(people) if i != left) for left in range(len(people))]
    return sum(min(count / 3, 1.0) for count in agree) / len(people)


def pope_answer(text: str) -> str:
    """POPE's rule: "no" where the first sentence has the word no or not, else "yes"."""
    words = text.split(".")[0].replace(",", "").lower().split()
    return "no" if "no" in words or "not" in words else "yes"


def pope(answers: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
    """accuracy, and precision, recall and f1 of "yes"; `yes` is the share of that answer. 0 where undefined."""
    said = [pope_answer(answer) for answer in answers]
    hits = sum(one == gold == "yes" for one, gold in zip(said, golds, strict=True))
    precision = hits / said.count("yes") if "yes" in said else 0.0
    recall = hits / list(golds).count("yes") if "yes" in golds else 0.0
    return {
        "accuracy": sum(one == gold for one, gold in zip(said, golds, strict=True)) / len(said),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "yes": said.count("yes") / len(said),
    }


def score(task: str, answers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The task's metrics over answers, in the rows' order."""
    if task not in TASKS:
        raise RecipeError(f"no task {task!r}{nearest(task, TASKS)}; there are {', '.join(TASKS)}")
    if task == "pope":
        return pope(answers, [row["answer"] for row in rows])
    rule = {"gqa": gqa, "scienceqa": scienceqa, "textvqa": textvqa}[task]
    column = "answers" if task == "textvqa" else "answer"
    return {
        "accuracy": sum(float(rule(text, row[column])) for text, row in zip(answers, rows, strict=True)) / len(rows)
    }


TASKS = ("gqa", "scienceqa", "textvqa", "pope")
