"""`Step`: what attention has to know of one forward pass over the tokens of many requests.

    step = Step(cache, places, chunks=[Span(start=0, num_tokens=5, context=0, pages=[3])])
    with current.computing(step):
        model(input_ids=ids, position_ids=positions, use_cache=False)

A step is made whole and never changes. All tokens lie end to end in one row, [1, tokens].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from .cache import PAGE, PagedCache


class Span(NamedTuple):
    """The tokens of one request in a step: where they lie in the row, and what they attend to.

    start       its first token's number in the row
    num_tokens  its tokens in this step
    context     positions of the request that were computed before
    pages       the request's pages, for all positions up to the last token's
    """

    start: int
    num_tokens: int
    context: int
    pages: list[int]

    def places(self) -> list[int]:
        """page · PAGE + offset of each token: where its key and value go."""
        positions = range(self.context, self.context + self.num_tokens)
        return [self.pages[position // PAGE] * PAGE + position % PAGE for position in positions]


class Decode(Protocol):
    """Those requests of a step that compute one token each, attended to at once by what a device has for it."""

    @property
    def tokens(self) -> slice | Tensor:
        """Which of the step's tokens are theirs."""
        ...

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, *, scale: float, softcap: float, window: int) -> Tensor:
        """softmax(scale · q Kᵀ) V of each token over its own pages: q [requests, heads, head_dim] → the same shape.

        keys     [pages, kv_heads, head_dim, PAGE], values [pages, kv_heads, PAGE, head_dim]: one layer's pool
        softcap  c squashes each logit x to c · tanh(x / c); 0: none
        window   positions that a token attends to, itself included; 0: all
        """
        ...


@dataclass(frozen=True)
class Step:
    """One forward pass.

    places  [tokens] int64, page · PAGE + offset: where each token's key and value go
    chunks  requests that are attended to one at a time
    decode  requests that are attended to all at once; None: there are none
    """

    cache: PagedCache
    places: Tensor
    chunks: Sequence[Span] = ()
    decode: Decode | None = None


class CurrentStep:
    """The step of the running forward pass; all attention modules of a model read the same object.

    Some models (Nemotron) hand no options of their caller down to attention, so the step cannot be one of them.
    """

    def __init__(self) -> None:
        self.step: Step | None = None

    @contextmanager
    def computing(self, step: Step) -> Iterator[None]:
        """Let attention compute this step for the length of a block."""
        previous, self.step = self.step, step
        try:
            yield
        finally:
            self.step = previous
