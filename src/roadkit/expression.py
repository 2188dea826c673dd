"""Adapter expressions: `formal*0.7 + german - pirate` → one `Adapter`.

    compose("formal*0.7 + german", {"formal": a, "german": b})

Grammar: term ((' + ' | ' - ') term)*. A term is `name`, `name*w`, `w*name` or any of these after a `-`. Terms apply from
left to right, w is a strength, and `-x` is the inverse of x. A registered name wins over every other reading of the same
text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch

from .adapter import Adapter
from .errors import AdapterError, ExpressionError, UnknownAdapter, nearest

MAX_STRENGTH = 8.0
MAX_TERMS = 16
MAX_LENGTH = 1024
MAX_ENTRY = 1e4  # of |a| and |b| in a composed row; trained adapters stay below about 3

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/@-]*")
_NUMBER = re.compile(r"\d+(?:\.\d*)?|\.\d+")
_SEPARATOR = re.compile(r" +([+-]) +")


def check_name(name: str) -> str:
    """Refuse a name that an expression could not hold. Raises `AdapterError`."""
    if _NAME.fullmatch(name) is None:
        raise AdapterError(f"{name!r} is no adapter name: letters, digits and _.:/@- after a letter, digit or _")
    return name


class Term(NamedTuple):
    """One factor of a composition: an adapter's name and its strength, rounded to 1e-3; −1 is the inverse."""

    name: str
    strength: float


def parse(text: str, names: Collection[str]) -> tuple[Term, ...]:
    """Split an expression into its terms.

    names  the registered adapters

    Raises `ExpressionError` with the position of what does not fit, and `UnknownAdapter` with the nearest known name.
    """
    if text in names:
        return (Term(text, 1.0),)
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"the expression has {len(text)} characters, at most {MAX_LENGTH} are allowed")
    terms, position, sign = [], 0, 1.0
    for match in [*_SEPARATOR.finditer(text), None]:
        end = match.start() if match else len(text)
        terms.append(_term(text, position, end, sign, names))
        if match:
            position, sign = match.end(), -1.0 if match[1] == "-" else 1.0
    if len(terms) > MAX_TERMS:
        raise ExpressionError(f"the expression has {len(terms)} terms, at most {MAX_TERMS} are allowed")
    return tuple(terms)


def canonical(terms: tuple[Term, ...]) -> str:
    """The terms as an expression, in one spelling: equal compositions give equal text."""
    text = ""
    for i, term in enumerate(terms):
        sign = "-" if term.strength < 0 else "+"
        if i > 0:
            text += f" {sign} "
        elif sign == "-":
            text += sign
        text += term.name + (f"*{abs(term.strength):g}" if abs(term.strength) != 1 else "")
    return text


def compose(expression: str | tuple[Term, ...], adapters: Mapping[str, Adapter]) -> Adapter:
    """The one adapter that an expression over named adapters means: `compose("formal*0.7 + german", {...})`.

    Every adapter is raised to its strength (`**`), then all are applied from left to right (`then`). The result is
    finite, and no entry of a composed one exceeds 1e4.
    Raises `ExpressionError` for the text, `AdapterError` or `AlgebraError` for what the adapters do not allow.
    """
    terms = parse(expression, adapters) if isinstance(expression, str) else expression
    result: Adapter | None = None
    for term in terms:
        factor = adapters[term.name] ** term.strength
        result = factor if result is None else result.then(factor)
    assert terms and result is not None, f"no terms in {expression!r}"
    largest = float(torch.maximum(result.a.abs().max(), result.b.abs().max()))
    if [term.strength for term in terms] != [1]:  # what came from a file was checked there
        if not math.isfinite(largest) or largest > MAX_ENTRY:
            raise ExpressionError(
                f"{canonical(terms)!r} grows to {largest:.3g} in one entry, at most {MAX_ENTRY:g} is allowed; "
                "use smaller strengths"
            )
    return result


def _term(text: str, start: int, end: int, sign: float, names: Collection[str]) -> Term:
    start, end = _trim(text, start, end)
    if text[start:end] in names:
        return Term(text[start:end], sign)
    if text.startswith("-", start, end):
        sign, (start, end) = -sign, _trim(text, start + 1, end)
        if text[start:end] in names:
            return Term(text[start:end], sign)
    star = text.find("*", start, end)
    if star < 0:
        return Term(_known(text, start, end, names), sign)
    sides = _trim(text, start, star), _trim(text, star + 1, end)
    readings = [(name, number) for name, number in (sides, sides[::-1]) if _NUMBER.fullmatch(text[slice(*number)])]
    if not readings:
        _known(text, *sides[0], names)
        at = sides[1][0]
        mend = "; a sign goes before the term" if text.startswith(("-", "+"), at) else ""
        raise ExpressionError(f"expected a number at position {at} of {text!r}{mend}", position=at)
    name, number = next((reading for reading in readings if text[slice(*reading[0])] in names), readings[0])
    return Term(_known(text, *name, names), sign * _strength(text[slice(*number)], number[0]))


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The bounds of `text[start:end]` without the spaces around it."""
    end = start + len(text[start:end].rstrip(" "))
    return end - len(text[start:end].lstrip(" ")), end


def _known(text: str, start: int, end: int, names: Collection[str]) -> str:
    name = text[start:end]
    if name in names:
        return name
    match = _NAME.match(name)
    if match is None:
        raise ExpressionError(f"expected an adapter name at position {start} of {text!r}", position=start)
    if match.end() < len(name):
        at = start + match.end()
        mend = "; put spaces around a binary '+' or '-'" if any(sign in name for sign in "+-") else ""
        raise ExpressionError(f"expected '+', '-' or '*' at position {at} of {text!r}{mend}", position=at)
    raise UnknownAdapter(f"no adapter {name!r}{nearest(name, names)}", position=start)


def _strength(number: str, position: int) -> float:
    value = round(float(number), 3)
    if value > MAX_STRENGTH:
        raise ExpressionError(
            f"strength {number[:16]} at position {position} is too large, |w| is at most {MAX_STRENGTH:g}",
            position=position,
        )
    return value
