from __future__ import annotations

import pytest

from roadkit.errors import RequestError
from roadkit.intervene import Positions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("last:1", [4]),
        ("first:2", [0, 1]),
        ("first:2+last:2", [0, 1, 3, 4]),
        ("first:4+last:4", [0, 1, 2, 3, 4]),
        ("at:0,-1,2", [0, 2, 4]),
        ("prompt", [0, 1, 2, 3, 4]),
        ("all", [0, 1, 2, 3, 4]),
    ],
)
def test_positions_of_a_prompt_of_five(text, expected):
    positions = Positions.parse(text)
    assert positions.of_prompt(5) == expected
    assert Positions.parse(str(positions)) == positions
    assert positions.generated == (text == "all")


@pytest.mark.parametrize("text", ["", "last", "last:-1", "last:1+last:2", "everywhere", "at:", "first:0"])
def test_what_is_no_position_is_refused(text):
    with pytest.raises(RequestError, match="position"):
        Positions.parse(text)


def test_short_prompts_and_positions_outside_are_named():
    with pytest.raises(RequestError, match="the prompt has 2 tokens, the intervention acts on its last 3"):
        Positions.parse("first:1+last:3").of_prompt(2)
    with pytest.raises(RequestError, match="position -6 lies outside the prompt of 5 tokens"):
        Positions.parse("at:-6").of_prompt(5)
