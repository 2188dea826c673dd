"""Answers to questions about pictures (GQA, ScienceQA, TextVQA, POPE), scored by each benchmark's published rule.

    score_answers("pope", answers, rows)     # {"accuracy": …, "precision": …, "recall": …, "f1": …, "yes": …}

A row has `answer` (GQA: a word; ScienceQA: the letter; POPE: yes or no), or for TextVQA `answers`, those of ten people.
Sources: haotian-liu/LLaVA, in the file named at each rule. As there, space around an answer is dropped first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from roadkit.errors import RecipeError, nearest

PICTURE_TASKS = ("gqa", "scienceqa", "textvqa", "pope")
ARTICLES = {"a", "an", "the"}
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(WORDS)}
PUNCTUATION = ';/[]"{}()=+\\_-><@`!'  # commas and question marks are removed before these; other marks stay
ENDINGS = {  # ending → words whose missing apostrophe is put back; 's is cut off earlier and needs none
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "'ve": "could might must not should they we what where who would you couldn't hadn't mightn't shouldn't wouldn't "
    "he'd it'd she'd there'd somebody'd someone'd something'd they'd we'd who'd you'd y'all'd",
    "'ll": "how it somebody someone something they what who why you y'all",
    "'d": "he how it somebody someone something there they where who you",
    "'re": "there they what why you",
}
_WHOLE = ["ma'am", "o'clock", "'twas", "y'all"] + [
    stem + end for end, stems in ENDINGS.items() for stem in stems.split()
]
CONTRACTIONS = {word[:i] + word[i + 1 :]: word for word in _WHOLE for i, mark in enumerate(word) if mark == "'"}


def gqa(answer: str, gold: str) -> bool:
    """Whether both are equal, in lower case and without stops at the end. Articles and number words stay as they are.

    Source: scripts/convert_gqa_for_eval.py, then GQA's eval.py, which compares whole strings (read as
    MILVLG/openvqa, openvqa/datasets/gqa/eval/gqa_eval.py).
    """
    return answer.strip().rstrip(".").lower() == gold


def scienceqa(answer: str, gold: str) -> bool:
    """Whether the letter is right. Any form but "B", "B. " and more, or exactly one "The answer is B." is wrong.

    Source: llava/eval/eval_science_qa.py. There too "B." is wrong, and "The answer is B" if no character follows it.
    """
    text = answer.strip()
    if text in list("ABCDE") or re.match(r"[A-E]\. ", text):
        return text[0] == gold
    return re.findall("The answer is ([A-Z]).", text) == [gold]


def normalize(text: str) -> str:
    """The answer as TextVQA compares it: in lower case, without articles, punctuation and number words made uniform.

    A mark that has a space beside it anywhere is removed everywhere ("x - y-z" → "x yz"). Any other mark becomes a space
    ("y-z" → "y z"). A stop is removed unless a digit follows it.

    Source: llava/eval/m4c_evaluator.py, EvalAIAnswerProcessor.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    given = text = text.replace("\n", " ").replace("\t", " ")
    for mark in PUNCTUATION:
        text = text.replace(mark, "" if f"{mark} " in given or f" {mark}" in given else " ")
    words = [NUMBERS.get(word, word) for word in re.sub(r"\.(?!\d)", "", text).split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def textvqa(answer: str, golds: Sequence[str]) -> float:
    """Each person is left out once; the mean over that of min(others who gave this answer / 3, 1).

    Source: llava/eval/m4c_evaluator.py, TextVQAAccuracyEvaluator.
    """
    given, people = normalize(answer), [normalize(gold) for gold in golds]
    if not people:
        raise RecipeError("textvqa: a row has no answers")
    agree = [sum(other == given for i, other in enumerate(people) if i != left) for left in range(len(people))]
    return sum(min(count / 3, 1.0) for count in agree) / len(people)


def pope_answer(text: str) -> str:
    """ "no" if the first sentence has the word No, no or not, in just these spellings, between spaces; else "yes".

    Source: llava/eval/eval_pope.py, the same as evaluate.py of AoiDragon/POPE.
    """
    words = text.strip().partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def pope(answers: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
    """accuracy; precision, recall and f1 of the answer "yes"; and `yes`, its share. What is undefined is 0.

    Source: llava/eval/eval_pope.py. It takes the rows of one category (random, popular, adversarial) at a time, and if a
    number is undefined it stops with a division by zero.
    """
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


def score_answers(task: str, answers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The task's metrics of `answers`, which are in the rows' order. Raises `RecipeError` for an unknown task."""
    if task not in PICTURE_TASKS:
        raise RecipeError(f"no task {task!r}{nearest(task, PICTURE_TASKS)}; there are {', '.join(PICTURE_TASKS)}")
    if task == "pope":
        return pope(answers, [row["answer"] for row in rows])
    rule = {"gqa": gqa, "scienceqa": scienceqa, "textvqa": textvqa}[task]
    column = "answers" if task == "textvqa" else "answer"
    return {
        "accuracy": sum(float(rule(text, row[column])) for text, row in zip(answers, rows, strict=True)) / len(rows)
    }
