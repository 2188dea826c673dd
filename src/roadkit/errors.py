"""What can go wrong for a user: each error is a `ValueError` that says what was wrong, with both values and the mend.

try:
    adapter = roadkit.Adapter.load("adapters/formal")
except roadkit.RoadkitError as error:
    print(error)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class RoadkitError(ValueError):
    """Base of every error that roadkit raises for a user's mistake."""


class AdapterError(RoadkitError):
    """A file, tensor or configuration is no valid adapter, or does not fit the model or another adapter."""


class AlgebraError(RoadkitError):
    """A product, inverse or power that does not exist. `pair` is the number of the offending pair, None if unknown."""

    def __init__(self, message: str, *, pair: int | None = None):
        super().__init__(message)
        self.pair = pair


class ExpressionError(RoadkitError):
    """A malformed adapter expression, or a name that nobody registered. `position` counts characters from 0."""

    def __init__(self, message: str, *, position: int = 0):
        super().__init__(message)
        self.position = position


class UnknownAdapter(ExpressionError):
    """A name that no adapter has, or that none has any more."""


class ModelError(RoadkitError):
    """A base model that cannot be found or used, or a layer that cannot be adapted."""


class RequestError(RoadkitError):
    """A generation request that cannot be served as written; other requests go on."""


class ContextTooLong(RequestError):
    """A prompt, or a prompt and the answer it asks for, that is longer than the model's context."""


class QueueFull(RequestError):
    """So many requests wait that no more are taken; try again later."""


class BankFull(RoadkitError):
    """Running requests use every slot of the bank; try again when one has finished."""


class RecipeError(RoadkitError):
    """A training recipe or data file that cannot be used as written."""


def nearest(name: str, known: Iterable[object]) -> str:
    """`"; did you mean 'german'?"` for the closest of `known`, or an empty string if none is close."""
    import difflib

    match = difflib.get_close_matches(name, [str(item) for item in known], n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""
