"""Answers about pictures are scored by the published rules."""

from __future__ import annotations

import pytest

from paper.scoring.visual_questions import gqa, normalize, pope, pope_answer, scienceqa, score_answers, textvqa
from roadkit.errors import RecipeError


def test_gqa_compares_whole_answers_without_case_and_last_stop():
    assert gqa(" Dog.", "dog")
    assert not gqa("the dog", "dog")
    assert not gqa("two", "2")
    assert not gqa("t-shirt", "t shirt")


def test_scienceqa_wants_a_letter_in_one_of_three_forms():
    for text in ("B", "B. a rock", "The answer is B.", "I think: The answer is B because"):
        assert scienceqa(text, "B"), text
    for text in ("Because", "A", "b", "", "B.", "The answer is B", "the answer is B.", "(B)"):
        assert not scienceqa(text, "B"), text
    assert not scienceqa("The answer is B. No: The answer is B.", "B")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The Two dogs.", "2 dogs"),
        ("none", "0"),
        ("3.50", "3.50"),  # a stop before a digit stays
        ("$1,200", "$1200"),
        ("t-shirt", "t shirt"),
        ("t-shirt - red", "tshirt red"),  # one dash beside a space: all of them are removed
        ("dont", "don't"),
        ("they'dve", "they'd've"),
        ("Joe's", "joe 's"),
        ("7:30 a.m.", "7:30 am"),
        ("what?\nno!", "what no"),
    ],
)
def test_textvqa_answers_are_normalised_as_published(text, found):
    assert normalize(text) == found


def test_textvqa_by_hand():
    people = ["stop"] * 3 + ["sign"] * 7
    assert textvqa("Stop", people) == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)  # 0.9
    assert textvqa("sign", people) == 1.0
    assert textvqa("go", people) == 0.0


def test_pope_by_hand():
    answers = ["Yes.", "No, there is none", "There is not. Yes", "I see it"]
    found = pope(answers, ["yes", "yes", "no", "no"])
    assert found == {"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes": 0.5}
    assert pope(["no"], ["no"])["f1"] == 0.0
    said = [pope_answer(text) for text in ("No", "NO", "Not", "no,", "Yes. no")]
    assert said == ["no", "yes", "yes", "no", "yes"]
    with pytest.raises(RecipeError, match="did you mean 'pope'"):
        score_answers("popes", [], [])
