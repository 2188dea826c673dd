"""pydantic's errors in words: fields by their full names, and the nearest field that there is."""

from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from roadkit.errors import RecipeError
from roadkit.validation import Checked, problems


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str
    alternatives: list[str] | int = 0


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")
    strength: Annotated[float, Field(le=8)] = 1.0
    streams: list[str] | list[int] = []
    parts: list[Part] | None = None
    named: dict[str, int] = {}
    schema_: int = Field(0, alias="schema")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"strenght": 1}, "unknown field 'strenght'; did you mean 'strength'?"),
        ({"schem": 1}, "unknown field 'schem'; did you mean 'schema'?"),
        ({"parts": [{"text": "a"}, {"txet": "b", "text": "c"}]}, "unknown field 'parts.1.txet'; did you mean 'text'?"),
        ({"parts": [{}]}, "parts.0.text is missing"),
        ({"strength": 9}, "strength: input should be less than or equal to 8, got '9'"),
        ({"named": {"it": "x"}}, "named.it: input should be a valid integer"),
    ],
)
def test_every_problem_names_its_field(values, text):
    with pytest.raises(ValidationError) as error:
        Whole.model_validate(values)
    assert str(problems(error.value, Whole)[0]).startswith(text)


def test_branches_of_a_union_are_no_part_of_the_name_though_fields_may_begin_like_types():
    with pytest.raises(ValidationError) as error:
        Whole.model_validate({"streams": [1, "x"], "parts": [{"text": "a", "alternatives": [1]}]})
    assert {problem.field for problem in problems(error.value, Whole)} == {
        "streams.0", "streams.1", "parts.0.alternatives.0", "parts.0.alternatives",
    }  # fmt: skip


def test_a_checked_model_raises_its_own_error_with_all_problems_once():
    class Settings(Checked):
        error_class = RecipeError
        noun = "key"
        rate: float = 1.0
        steps: int = 1

    with pytest.raises(RecipeError, match=r"^rate: .*'fast'; steps: .*; unknown key 'rat'; did you mean 'rate'\?$"):
        Settings(rate="fast", steps="many", rat=1)  # type: ignore[arg-type]
    assert Settings(rate=2).rate == 2
