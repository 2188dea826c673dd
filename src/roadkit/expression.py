"""Adapter expressions: `formal*0.7 + german - pirate` → one `Adapter`.

    compose("formal*0.7 + german", {"formal": a, "german": b})

Grammar: term ((' + ' | ' - ') term)*, where a term is `name`, `name*w`, `w*name` or any of these after a `-`. Terms
apply left to right; `-x` is x's inverse. A registered name wins over every other reading of the same text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch

from .adapter import Adapter
from .errors import ExpressionError, nearest

MAX_STRENGTH = 8.0
MAX_TERMS = 16
MAX_LENGTH = 1024
MAX_ENTRY = 1e4  # of |a| and |b| in a composed row; trained adapters stay below about 3

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/@-]*")
_NUMBER = re.compile(r"\d+(?:\.\d*)?|\.\d+")
_SEPARATOR = re.compile(r" +([+-]) +")


class Term(NamedTuple):
    """One factor of a composition: an adapter's name and its strength, rounded to 1e-3."""

    name: str
    strength: float


def parse(text: str, names: Collection[str]) -> tuple[Term, ...]:
    """Split an expression into terms. Raises `ExpressionError` with the position of what does not fit.

    `names` are the registered adapters; unknown ones are refused with the nearest of them.
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
    """The same expression in one spelling, so that equal compositions share a cache entry."""
    text = ""
    for term in terms:
        text += (" - " if term.strength < 0 else " + ") if text else ("-" if term.strength < 0 else "")
        text += term.name + (f"*{abs(term.strength):g}" if abs(term.strength) != 1 else "")
    return text


def compose(expression: str | tuple[Term, ...], adapters: Mapping[str, Adapter]) -> Adapter:
    """Evaluate an expression over named adapters: powers, then products from left to right.

    Raises `ExpressionError` for the text, `AdapterError` or `AlgebraError` for what the adapters do not allow.
    """
    terms = parse(expression, adapters) if isinstance(expression, str) else expression
    result: Adapter | None = None
    for term in terms:
        factor = adapters[term.name] ** term.strength
        result = factor if result is None else result.then(factor)
    assert result is not None, f"no terms in {expression!r}"
    largest = float(torch.maximum(result.a.abs().max(), result.b.abs().max()))
    if len(terms) > 1 or terms[0].strength != 1:
        if not math.isfinite(largest) or largest > MAX_ENTRY:
            raise ExpressionError(
                f"{canonical(terms)!r} grows to {largest:.3g} in one entry, at most {MAX_ENTRY:g} is allowed; "
                "use smaller strengths"
            )
    return result


def _term(text: str, start: int, end: int, sign: float, names: Collection[str]) -> Term:
    piece = text[start:end].strip(" ")
    start += len(text[start:end]) - len(text[start:end].lstrip(" "))
    if not piece:
        raise ExpressionError(f"expected an adapter name at position {start} of {text!r}", position=start)
    if piece in names:
        return Term(piece, sign)
    if piece.startswith("-"):
        sign, piece, start = -sign, piece[1:], start + 1
        if piece in names:
            return Term(piece, sign)
    left, star, right = piece.partition("*")
    if not star:
        return Term(_known(left, start, text, names), sign)
    if _NUMBER.fullmatch(right.strip()):
        return Term(_known(left.strip(), start, text, names), sign * _strength(right.strip(), start + len(left) + 1))
    if _NUMBER.fullmatch(left.strip()):
        return Term(_known(right.strip(), start + len(left) + 1, text, names), sign * _strength(left.strip(), start))
    at = start + len(left)
    raise ExpressionError(f"expected a number beside '*' at position {at} of {text!r}", position=at)


def _known(name: str, position: int, text: str, names: Collection[str]) -> str:
    if name in names:
        return name
    match = _NAME.match(name)
    if match is None or match.end() < len(name):
        at = position + (match.end() if match else 0)
        mend = "; put spaces around a binary '+' or '-'" if any(sign in name for sign in "+-") else ""
        raise ExpressionError(f"expected an adapter name at position {at} of {text!r}{mend}", position=at)
    raise ExpressionError(f"no adapter {name!r}{nearest(name, names)}", position=position)


def _strength(number: str, position: int) -> float:
    value = round(float(number), 3)
    if value > MAX_STRENGTH:
        raise ExpressionError(
            f"strength {number} at position {position} is too large, |w| is at most {MAX_STRENGTH:g}", position=position
        )
    return value
