from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from roadkit.adapter import Adapter
from roadkit.errors import AdapterError, AlgebraError, ExpressionError
from roadkit.expression import MAX_LENGTH, MAX_TERMS, Term, canonical, compose, parse
from tests.conftest import random_parameters

NAMES = ("formal", "german", "a-b", "a", "b", "2", "v1.0", "org/x:y@z", "-odd", "a + b", "0.5")


def adapter(seed: int, variant: str = "road_1") -> Adapter:
    parameters = {"q": random_parameters(variant, 8, 4, seed), "v": random_parameters(variant, 12, 4, seed + 100)}
    return Adapter.from_parameters(parameters, variant=variant, group_size=4)


ADAPTERS = {name: adapter(seed, "road_1" if seed % 2 else "road_2") for seed, name in enumerate(NAMES)}


def close_adapters(one: Adapter, other: Adapter) -> None:
    assert one.layout == other.layout
    torch.testing.assert_close(one.a, other.a, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.b, other.b, rtol=1e-5, atol=1e-5)


# ---- the grammar ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("formal", [("formal", 1)]),
        ("formal*0.7", [("formal", 0.7)]),
        ("0.7*formal", [("formal", 0.7)]),
        ("formal * 0.7", [("formal", 0.7)]),
        ("  formal  ", [("formal", 1)]),
        ("-formal", [("formal", -1)]),
        ("- formal", [("formal", -1)]),
        ("-formal*2", [("formal", -2)]),
        ("-2*formal", [("formal", -2)]),
        ("formal + german", [("formal", 1), ("german", 1)]),
        ("formal - german", [("formal", 1), ("german", -1)]),
        ("formal - -german", [("formal", 1), ("german", 1)]),
        ("formal*.5  +   german*1.", [("formal", 0.5), ("german", 1)]),
        ("formal*0.7 + german - a-b*2", [("formal", 0.7), ("german", 1), ("a-b", -2)]),
        ("a-b", [("a-b", 1)]),  # a binary minus has spaces around it
        ("a - b", [("a", 1), ("b", -1)]),
        ("org/x:y@z*3 + v1.0", [("org/x:y@z", 3), ("v1.0", 1)]),
        ("formal*0.12345", [("formal", 0.123)]),
        ("formal*0.0004", [("formal", 0)]),
        ("formal*8", [("formal", 8)]),
        # a registered name wins over every other reading
        ("a + b", [("a + b", 1)]),
        ("-odd", [("-odd", 1)]),
        ("a - -odd", [("a", 1), ("-odd", -1)]),
        ("2", [("2", 1)]),
        ("2*3", [("2", 3)]),
        ("3*2", [("2", 3)]),
        ("0.5*2", [("0.5", 2)]),
        ("0.25*2", [("2", 0.25)]),
    ],
)
def test_reads(text, terms):
    assert parse(text, NAMES) == tuple(Term(*term) for term in terms)


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("formal*0.7 + germn", 13, "no adapter 'germn'; did you mean 'german'?"),
        ("zzzzzz", 0, "no adapter 'zzzzzz'"),
        ("", 0, "expected an adapter name at position 0 of ''"),
        ("   ", 0, "expected an adapter name at position 0"),
        ("formal + ", 9, "expected an adapter name at position 9"),
        ("formal +  + german", 10, "expected an adapter name at position 10"),
        (" + formal", 0, "expected an adapter name at position 0"),
        ("-", 1, "expected an adapter name at position 1 of '-'"),
        ("formal+german", 6, "expected '+', '-' or '*' at position 6 of 'formal+german'; put spaces around"),
        ("formal +german", 6, "expected '+', '-' or '*' at position 6 of 'formal +german'; put spaces around"),
        ("formal +", 6, "expected '+', '-' or '*' at position 6 of 'formal +'; put spaces around"),
        ("formal german", 6, "expected '+', '-' or '*' at position 6 of 'formal german'"),
        ("formal*x", 7, "expected a number at position 7 of 'formal*x'"),
        ("formal*", 7, "expected a number at position 7 of 'formal*'"),
        ("formal * ", 8, "expected a number at position 8 of 'formal * '"),
        ("formal*-2", 7, "expected a number at position 7 of 'formal*-2'; a sign goes before the term"),
        ("formal*1e3", 7, "expected a number at position 7 of 'formal*1e3'"),
        ("formal*2*3", 7, "expected a number at position 7"),
        ("*2", 0, "expected an adapter name at position 0 of '*2'"),
        ("7*", 2, "expected an adapter name at position 2 of '7*'"),
        ("german + 7*", 11, "expected an adapter name at position 11 of 'german + 7*'"),
        ("7 * germn", 4, "no adapter 'germn'; did you mean 'german'?"),
        ("formal*8.001", 7, "strength 8.001 at position 7 is too large, |w| is at most 8"),
        ("formal *  9", 10, "strength 9 at position 10 is too large"),
        ("german - 99*formal", 9, "strength 99 at position 9 is too large"),
        ("formal*" + "9" * 400, 7, "at position 7 is too large"),
        ("formal\n+ german", 6, "expected '+', '-' or '*' at position 6"),
        ("formál", 4, "expected '+', '-' or '*' at position 4"),
        ("../etc", 0, "expected an adapter name at position 0 of '../etc'"),
        ("german + " + "formal + " * MAX_TERMS + "a", 0, f"has {MAX_TERMS + 2} terms, at most {MAX_TERMS}"),
        ("x" * (MAX_LENGTH + 1), 0, f"has {MAX_LENGTH + 1} characters, at most {MAX_LENGTH}"),
    ],
)
def test_refuses_and_points_at_the_place(text, position, message):
    with pytest.raises(ExpressionError) as caught:
        parse(text, NAMES)
    assert message in str(caught.value)
    assert caught.value.position == position


def test_unknown_name_without_a_near_one_has_no_suggestion():
    with pytest.raises(ExpressionError) as caught:
        parse("zzzzzz", NAMES)
    assert str(caught.value) == "no adapter 'zzzzzz'"


pieces = st.sampled_from(
    ["formal", "germn", "a-b", "2", "0.5", "+", "-", "*", " ", "  ", " + ", " - ", "é", "\n", "(", "1e3", ""]
)


@settings(max_examples=200)
@given(st.lists(pieces, max_size=8).map("".join) | st.text(max_size=30))
@example("\x00")
def test_any_text_is_read_or_refused_within_itself(text):
    try:
        terms = parse(text, NAMES)
    except ExpressionError as error:
        assert 0 <= error.position <= len(text)
    else:
        assert terms
        assert all(term.name in NAMES and abs(term.strength) <= 8 for term in terms)


strengths = st.integers(-8000, 8000).map(lambda thousandths: thousandths / 1000)
plain_names = st.sampled_from(["formal", "german", "a-b", "v1.0", "org/x:y@z"])


@given(st.lists(st.builds(Term, plain_names, strengths), min_size=1, max_size=MAX_TERMS).map(tuple))
def test_canonical_spelling_reads_back(terms):
    assert parse(canonical(terms), NAMES) == terms


@pytest.mark.parametrize("spelling", ["formal*0.70 - german", " 0.7*formal  -  1*german", "formal*.7001 + -german"])
def test_spellings_of_one_composition_have_one_canonical_form(spelling):
    assert canonical(parse(spelling, NAMES)) == "formal*0.7 - german"


# ---- composing --------------------------------------------------------------------------------------------------


def test_terms_apply_left_to_right():
    formal, german = ADAPTERS["formal"], ADAPTERS["german"]
    assert compose("formal + german", ADAPTERS) == formal.then(german)
    assert compose("german + formal", ADAPTERS) == german.then(formal)
    assert formal.then(german) != german.then(formal)


def test_strength_and_sign_are_powers():
    formal, german = ADAPTERS["german"], ADAPTERS["a"]
    names = {"formal": formal, "german": german}
    assert compose("formal*0.5", names) == formal**0.5
    assert compose("-formal", names) == formal.inverse()
    assert compose("formal*0.5 - german*0.25", names) == (formal**0.5).then(german**-0.25)


def test_one_adapter_is_itself():
    assert compose("formal", ADAPTERS) is ADAPTERS["formal"]
    assert compose("formal*1", ADAPTERS) is ADAPTERS["formal"]


def test_an_adapter_and_its_inverse_are_the_base():
    nothing = compose("formal - formal", ADAPTERS)
    torch.testing.assert_close(nothing.a, torch.ones_like(nothing.a), rtol=0, atol=1e-4)
    torch.testing.assert_close(nothing.b, torch.zeros_like(nothing.b), rtol=0, atol=1e-4)
    assert compose("formal*0", ADAPTERS).a.eq(1).all()


@settings(max_examples=20)
@given(st.integers(-200, 200), st.integers(-200, 200))
def test_strengths_of_one_adapter_add(one, other):
    names = {"x": ADAPTERS["german"]}
    together = (
        compose(f"x*{abs(one + other) / 100}", names)
        if one + other >= 0
        else compose(f"-x*{-(one + other) / 100}", names)
    )
    apart = compose(
        f"{'-' if one < 0 else ''}x*{abs(one) / 100} {'-' if other < 0 else '+'} x*{abs(other) / 100}", names
    )
    close_adapters(apart, together)


def flat(value: float) -> Adapter:
    parameters = {"q": (torch.zeros(4), torch.full((4,), value))}
    return Adapter.from_parameters(parameters, variant="road_1", group_size=2)


def test_compositions_that_grow_out_of_bounds_are_refused():
    names = {"x": flat(100.0), "huge": flat(3e38)}
    compose("x*2", names)
    for text in ("x*2.5", "x + x + x", "huge*8", "huge + x"):
        with pytest.raises(ExpressionError, match=r"grows to .* in one entry, at most 10000 is allowed; use smaller"):
            compose(text, names)


def test_what_the_adapters_do_not_allow_is_said():
    with pytest.raises(AdapterError, match="group_size 2 in one adapter, 4 in the other"):
        compose("x + german", {"x": flat(1.0), "german": ADAPTERS["german"]})
    mirror = Adapter.from_parameters(
        {"q": (torch.tensor([0.0, 0.0]), torch.tensor([1.0, -1.0]))}, variant="road_2", group_size=2
    )
    with pytest.raises(AlgebraError, match=r"layer q, pair 0: .* no real power 0.5"):
        compose("x*0.5", {"x": mirror})
