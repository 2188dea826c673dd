"""Answer words are found by the published rules."""

from __future__ import annotations

import pytest

from paper.scoring import commonsense
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


def test_hellaswag_names_the_activity_if_it_is_known():
    row = commonsense.render({"activity_label": "Rowing", "ctx": "He", "endings": ["a.", "b."], "label": "0"})
    assert row["instruction"].startswith(
        "Please choose the correct ending to complete the given sentence: Rowing: He\n\nEnding1: a. Ending2: b.\n\n"
    )


def test_missing_data_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(
        RecipeError, match=r"no commonsense/piqa_test\.jsonl in .*--data names the folder that holds commonsense"
    ):
        commonsense.load("piqa", tmp_path, train=False)
