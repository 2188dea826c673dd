"""Text that follows a JSON schema: a request's grammar masks the tokens that would break it.

    grammars = Grammars(tokenizer, vocab_size)
    grammar = grammars.json({"type": "object"})
    grammar.mask(logits_row); grammar.accept(token)      # at every position

The grammar engine is llguidance; this file adapts it to one row of logits.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import torch
from torch import Tensor

from ..errors import RequestError

_BITS = torch.arange(32, dtype=torch.int32)


class Grammars:
    """Compiles schemas for one tokenizer, which is prepared when the first schema comes."""

    def __init__(self, tokenizer: Any, vocab_size: int):
        self._tokenizer, self._vocab_size = tokenizer, vocab_size

    @functools.cached_property
    def _vocabulary(self):
        import llguidance.hf

        return llguidance.hf.from_tokenizer(self._tokenizer, n_vocab=self._vocab_size)

    def json(self, schema: dict[str, Any]) -> Grammar:
        """A grammar for JSON that satisfies `schema`. Raises `RequestError` for a schema it cannot follow."""
        import llguidance

        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                json.dumps(schema), overrides={"whitespace_flexible": False}
            )
            matcher = llguidance.LLMatcher(self._vocabulary, grammar)
        except ValueError as error:
            raise RequestError(f"json_schema cannot be followed: {error}") from error
        if matcher.is_error():
            raise RequestError(f"json_schema cannot be followed: {matcher.get_error()}")
        return Grammar(matcher, self._vocab_size)


class Grammar:
    """Where one request stands in its grammar."""

    def __init__(self, matcher: Any, vocab_size: int):
        self._matcher, self._bitmask = matcher, torch.zeros((vocab_size + 31) // 32, dtype=torch.int32)

    def mask(self, row: Tensor) -> None:
        """Set every token of row [vocab] that the grammar forbids next to −∞."""
        self._matcher.unsafe_compute_mask_ptr(self._bitmask.data_ptr(), self._bitmask.nbytes)
        allowed = ((self._bitmask.unsqueeze(1) >> _BITS) & 1).view(-1)[: row.shape[0]].bool()
        row.masked_fill_(~allowed.to(row.device), float("-inf"))

    def accept(self, token: int) -> None:
        """Step over a token that was chosen under the mask."""
        self._matcher.consume_token(token)

    @property
    def complete(self) -> bool:
        """True once nothing but the end of the text can follow."""
        return self._matcher.is_stopped()
