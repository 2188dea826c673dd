"""Answers about pictures: GQA, ScienceQA, TextVQA and POPE, scored by their published rules over local rows.

    score("pope", answers, rows)        # {"accuracy": …, "precision": …, "recall": …, "f1": …, "yes": …}

rows: `answer` (GQA: a word; ScienceQA: the letter; POPE: yes or no), or TextVQA's `answers`, ten people's.
Sources: haotian-liu/LLaVA, the file named at each rule; like there, space around an answer is dropped first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from roadkit.errors import RecipeError, nearest

ARTICLES = {"a", "an", "the"}
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(WORDS)}
PUNCTUATION = ';/[]"{}()=+\\_-><@`!'  # commas and question marks have gone by then; other marks stay
ENDINGS = {  # contractions whose missing apostrophe is put back, by ending; 's is cut off before and needs none
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
    """Equal after lower case and without stops at the end; articles and number words stay as they are.

    Source: scripts/convert_gqa_for_eval.py, then GQA's eval.py, which compares whole strings (read as
    MILVLG/openvqa, openvqa/datasets/gqa/eval/gqa_eval.py).
    """
    return answer.strip().rstrip(".").lower() == gold


def scienceqa(answer: str, gold: str) -> bool:
    """The letter: "B", or "B. " and more, or exactly one "The answer is B" with a character after it; else wrong.

    Source: llava/eval/eval_science_qa.py. "B." and a last "The answer is B" without a stop are wrong there too.
    """
    text = answer.strip()
    if text in list("ABCDE") or re.match(r"[A-E]\. ", text):
        return text[0] == gold
    return re.findall("The answer is ([A-Z]).", text) == [gold]


def normalize(text: str) -> str:
    """The answer as TextVQA compares it: lower case, punctuation, number words, articles, contractions.

    A mark that has a space beside it anywhere vanishes everywhere, another becomes a space: "x - y-z" → "x yz", but
    "y-z" → "y z". Stops go unless a digit follows.

    Source: llava/eval/m4c_evaluator.py, EvalAIAnswerProcessor.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    given = text = text.replace("\n", " ").replace("\t", " ")
    for mark in PUNCTUATION:
        text = text.replace(mark, "" if f"{mark} " in given or f" {mark}" in given else " ")
    words = [NUMBERS.get(word, word) for word in re.sub(r"\.(?!\d)", "", text).split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def textvqa(answer: str, golds: Sequence[str]) -> float:
    """min(people who said it / 3, 1), averaged over leaving each person out.

    Source: llava/eval/m4c_evaluator.py, TextVQAAccuracyEvaluator.
    """
    given, people = normalize(answer), [normalize(gold) for gold in golds]
    if not people:
        raise RecipeError("textvqa: a row has no answers")
    agree = [sum(other == given for i, other in enumerate(people) if i != left) for left in range(len(people))]
    return sum(min(count / 3, 1.0) for count in agree) / len(people)


def pope_answer(text: str) -> str:
    """ "no" where the first sentence has the word No, no or not between spaces, in just these spellings; else "yes".

    Source: llava/eval/eval_pope.py, the same as evaluate.py of AoiDragon/POPE.
    """
    words = text.strip().partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def pope(answers: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
    """accuracy, and precision, recall and f1 of "yes"; `yes` is the share of that answer. 0 where undefined.

    Source: llava/eval/eval_pope.py, which takes the rows of one category (random, popular, adversarial) at a time, and
    stops with a division by zero where this is 0.
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
