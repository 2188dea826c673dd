"""Formats are recognised by their columns, and rows mean what people mean by them."""

from __future__ import annotations

import pytest

from roadkit.errors import RecipeError
from roadkit.train import Recipe
from roadkit.train.data.examples import Dialogue, Passage
from roadkit.train.data.formats import detect
from roadkit.train.data.tables import Table

USER, ASSISTANT = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
TURN = [USER, ASSISTANT]


def table(*rows) -> Table:
    return Table(rows, list(range(1, len(rows) + 1)), "rows.jsonl")


def recipe(**changes) -> Recipe:
    return Recipe(model="m", data="d", output="o", **changes)


def read(row, *, chat=True, **changes):
    rows, made = table(row), recipe(**changes)
    return detect(rows, made, chat=chat).read(rows[0])


@pytest.mark.parametrize(
    ("row", "name", "expected"),
    [
        ({"messages": TURN}, "messages", Dialogue(TURN)),
        (
            {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
            "sharegpt",
            Dialogue(TURN),
        ),
        ({"prompt": "2+2?", "completion": "4"}, "prompt_completion", Dialogue(TURN, 1)),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "prompt_completion", Dialogue(TURN, 1)),
        ({"instruction": "2+2?", "output": "4"}, "alpaca", Dialogue(TURN, 1)),
        ({"instruction": "2+2?", "input": "", "output": "4"}, "alpaca", Dialogue(TURN, 1)),
        ({"text": "2+2=4"}, "text", Passage("", "2+2=4")),
    ],
)
def test_formats_are_detected(row, name, expected):
    rows = table(row)
    assert detect(rows, recipe(), chat=True).name == name
    assert read(row) == expected


def test_alpaca_input_joins_the_instruction():
    example = read({"instruction": "Translate.", "input": "Hund", "output": "dog"})
    assert isinstance(example, Dialogue)
    assert example.messages[0]["content"] == "Translate.\n\nHund"


def test_alpaca_without_a_template_is_written_as_it_was_made():
    example = read({"instruction": "Translate.", "input": "Hund", "output": "dog"}, chat=False)
    assert isinstance(example, Passage)
    assert example.prompt.startswith("Below is an instruction that describes a task, paired with an input")
    assert example.prompt.endswith("### Input:\nHund\n\n### Response:\n")
    assert example.answer == "dog"


def test_chat_template_can_be_left_out():
    assert read({"prompt": "2+2?", "completion": "4"}, chat_template=False) == Passage("2+2?", "4")


def test_own_columns_take_a_role():
    assert read({"question": "2+2?", "answer": 4}, columns={"prompt": "question", "completion": "answer"}) == Dialogue(
        TURN, 1
    )


def test_system_message_comes_first_unless_there_is_one():
    system = {"role": "system", "content": "Be brief."}
    assert read({"prompt": "2+2?", "completion": "4"}, system="Be brief.") == Dialogue([system, *TURN], 2)
    own = [{"role": "system", "content": "Rhyme."}, *TURN]
    assert read({"messages": own}, system="Be brief.") == Dialogue(own)


def test_sentences_take_the_names_that_people_use():
    made = recipe(task="classification")
    for row in (
        {"sentence1": "a", "sentence2": "b", "label": 1},
        {"sentence": "a", "label": 1},
        {"text": "a", "label": 1},
    ):
        layout = detect(table(row), made, chat=False)
        assert layout.name == "sentences"
        assert row[layout.columns["sentence1"]] == "a"


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ({"question": "a", "answer": "b"}, {}, r"the columns question, answer are no known format.*prompt: question"),
        ({"prompt": "a", "answer": "b"}, {"format": "prompt_completion"}, "no column 'completion'.*needs prompt"),
        ({"text": "a"}, {"columns": {"promt": "text"}}, "no format has a 'promt'; did you mean 'prompt'"),
        ({"messages": "hello"}, {}, "column 'messages': must be a list of messages, is 'hello'"),
        ({"messages": [USER]}, {}, "no message is the assistant's"),
        ({"messages": [{"role": "user", "content": None}]}, {}, "message 0: its content must be text, is None"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, {}, "from 'bot' is none of human"),
        ({"prompt": None, "completion": "x"}, {}, "column 'prompt': must be text, is empty"),
        ({"text": "a", "lable": 1}, {"task": "classification"}, "no column 'label'; did you mean 'lable'"),
    ],
)
def test_rows_that_mean_nothing_are_explained(row, changes, message):
    with pytest.raises(RecipeError, match=r"rows\.jsonl, row 1|columns:") as error:
        read(row, **changes)
    assert error.match(message)


def test_messages_need_a_template():
    with pytest.raises(RecipeError, match="messages need a chat template"):
        read({"messages": TURN}, chat=False)


def test_held_out_rows_are_pairs_if_training_rows_are():
    made = recipe(task="classification")
    layout = detect(table({"sentence1": "a", "sentence2": "b", "label": 1}), made, chat=False)
    alone = table({"sentence1": "a", "label": 1})
    with pytest.raises(RecipeError, match="row 1: no column 'sentence2'; did you mean 'sentence1'"):
        layout.read(alone[0])
