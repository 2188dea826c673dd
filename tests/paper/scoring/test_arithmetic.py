"""Numbers and letters are found by the published rules."""

from __future__ import annotations

import math

import pytest

from paper.scoring import arithmetic


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So 3 and 4 make 7.", 7.0),
        ("1,200,000", 1200000.0),
        ("-2.50 dollars", -2.5),
        ("5 - 3", 3.0),
        ("2 -3", -3.0),
        ("none", math.inf),
        ("It is 7.\n\n### Response:\n8", 7.0),  # a second response does not count
    ],
)
def test_the_last_number_counts(text, number):
    assert arithmetic.extract_number(text) == number


def test_arithmetic_tolerance_and_letters():
    assert arithmetic.correct("mawps", "1.8333", "1.8333333333333335")
    assert not arithmetic.correct("gsm8k", "10.002", "10")
    assert arithmetic.correct("gsm8k", "1,000", "1,000")
    assert arithmetic.correct("aqua", "The answer is B", "B")
    assert arithmetic.correct("aqua", "An apple, so C", "A")  # the published rule: the first letter anywhere
    assert not arithmetic.correct("aqua", "7", "B")
    assert arithmetic.extract_letter("none ### Response: B") == ""


def test_training_rows_end_with_the_answer(data):
    (gsm8k,) = arithmetic.load("gsm8k", data, train=True).rows
    assert gsm8k["output"] == "1 + 2 = 3\nThe answer is 3."
    (mawps,) = arithmetic.load("mawps", data, train=True).rows
    assert mawps["output"] == "(1.0+2.0)\nThe answer is 3."
