"""Answer extraction and scores against hand-worked cases."""

from __future__ import annotations

import json
import math

import pytest

from paper.scoring import alpaca, arithmetic, commonsense, multimodal
from roadkit.errors import RecipeError


@pytest.mark.parametrize(
    ("task", "text", "found"),
    [
        ("boolq", "the correct answer is true", "true"),
        ("boolq", "It is false, not true.", "false"),
        ("boolq", "True", ""),  # case-sensitive
        ("piqa", " solution2\n", "solution2"),
        ("piqa", "solution3", ""),
        ("siqa", "answer1 or answer2", "answer1"),
        ("siqa", "answer4 or answer1", "answer4"),  # no answer of the task, but the published pattern has it
        ("openbookqa", "answer5, answer2", "answer5"),
        ("boolq", "maybe ### Response: true", ""),  # a second response does not count
        ("hellaswag", "Ending: ending4.", "ending4"),
        ("winogrande", "option12", "option1"),
        ("arc_easy", "answer5", "answer5"),
        ("openbookqa", "", ""),
    ],
)
def test_the_first_answer_word_counts(task, text, found):
    assert commonsense.extract(task, text) == found


def test_the_strict_rule_wants_the_whole_sentence():
    assert commonsense.extract_strict("the correct answer is option2") == "option2"
    assert commonsense.extract_strict("the correct answer is option2, I think") == "option2, I think"
    assert commonsense.extract_strict("option2") == ""


def test_hellaswag_is_written_as_the_others_are():
    row = commonsense.render({"ctx": "He", "endings": ["a.", "b.", "c.", "d."], "label": "3"})
    assert row["instruction"].startswith(
        "Please choose the correct ending to complete the given sentence: He\n\nEnding1: a. "
    )
    assert row["instruction"].endswith(" Ending4: d.\n\nAnswer format: ending1/ending2/ending3/ending4")
    assert row["answer"] == "ending4"
    assert row["output"] == "the correct answer is ending4"


def test_hellaswag_names_the_activity_where_it_is_known():
    row = commonsense.render({"activity_label": "Rowing", "ctx": "He", "endings": ["a.", "b."], "label": "0"})
    assert row["instruction"].startswith(
        "Please choose the correct ending to complete the given sentence: Rowing: He\n\nEnding1: a. Ending2: b.\n\n"
    )


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


def test_missing_data_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(
        RecipeError, match=r"no piqa_test\.jsonl in .*commonsense .*--data names the folder that holds commonsense"
    ):
        commonsense.load("piqa", tmp_path, train=False)


def test_gqa_compares_whole_answers_without_case_and_last_stop():
    assert multimodal.gqa(" Dog.", "dog")
    assert not multimodal.gqa("the dog", "dog")
    assert not multimodal.gqa("two", "2")
    assert not multimodal.gqa("t-shirt", "t shirt")


def test_scienceqa_wants_a_letter_in_one_of_three_forms():
    for text in ("B", "B. a rock", "The answer is B.", "I think: The answer is B because"):
        assert multimodal.scienceqa(text, "B"), text
    for text in ("Because", "A", "b", "", "B.", "The answer is B", "the answer is B.", "(B)"):
        assert not multimodal.scienceqa(text, "B"), text
    assert not multimodal.scienceqa("The answer is B. No: The answer is B.", "B")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The Two dogs.", "2 dogs"),
        ("none", "0"),
        ("3.50", "3.50"),  # a stop before a digit stays
        ("$1,200", "$1200"),
        ("t-shirt", "t shirt"),
        ("t-shirt - red", "tshirt red"),  # one dash beside a space: all of them vanish
        ("dont", "don't"),
        ("they'dve", "they'd've"),
        ("Joe's", "joe 's"),
        ("7:30 a.m.", "7:30 am"),
        ("what?\nno!", "what no"),
    ],
)
def test_textvqa_answers_are_normalised_as_published(text, found):
    assert multimodal.normalize(text) == found


def test_textvqa_by_hand():
    people = ["stop"] * 3 + ["sign"] * 7
    assert multimodal.textvqa("Stop", people) == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)  # 0.9
    assert multimodal.textvqa("sign", people) == 1.0
    assert multimodal.textvqa("go", people) == 0.0


def test_pope_by_hand():
    answers = ["Yes.", "No, there is none", "There is not. Yes", "I see it"]
    found = multimodal.pope(answers, ["yes", "yes", "no", "no"])
    assert found == {"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes": 0.5}
    assert multimodal.pope(["no"], ["no"])["f1"] == 0.0
    said = [multimodal.pope_answer(text) for text in ("No", "NO", "Not", "no,", "Yes. no")]
    assert said == ["no", "yes", "yes", "no", "yes"]
    with pytest.raises(RecipeError, match="did you mean 'pope'"):
        multimodal.score("popes", [], [])


def test_outputs_come_back_and_a_wrong_form_is_named(tmp_path):
    path = tmp_path / "outputs.json"
    alpaca.write_outputs(path, [{"instruction": "Hi", "reference_output": "x"}], ["Hello"], generator="mine")
    assert alpaca.read_outputs(path) == [{"instruction": "Hi", "output": "Hello", "generator": "mine"}]
    path.write_text(json.dumps([{"instruction": "Hi"}]))
    with pytest.raises(RecipeError, match="entry 0 has no output, generator"):
        alpaca.read_outputs(path)
    path.write_text("{}")
    with pytest.raises(RecipeError, match="a list of objects is wanted, this is a dict"):
        alpaca.read_outputs(path)


def test_win_rate_by_hand(tmp_path):
    path = tmp_path / "annotations.json"
    entries = [{"instruction": "a", "preference": value} for value in (1, 2, 1.5, None)]
    path.write_text(json.dumps(entries))
    assert alpaca.win_rate(alpaca.read_annotations(path)) == 0.5
    older = [{"instruction": "a", "preference": value} for value in (0, 2, math.nan)]  # a draw, a win, undecided
    path.write_text(json.dumps(older))
    assert alpaca.win_rate(alpaca.read_annotations(path)) == 0.75
    path.write_text(json.dumps([{"instruction": "a", "preference": 3}]))
    with pytest.raises(RecipeError, match="entry 0: preference must lie between 1 and 2, got 3"):
        alpaca.read_annotations(path)
    with pytest.raises(RecipeError, match="decided none"):
        alpaca.win_rate([{"preference": None}])
