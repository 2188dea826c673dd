"""`PromptEncoder`: prompts become tokens here, whichever engine answers them.

prompts = PromptEncoder(tokenizer, vocab_size=49152, max_context=8192)
token_ids = prompts.encode([{"role": "user", "content": "Hello"}])
prompts.check_room(len(token_ids), max_tokens=64)
"""

from __future__ import annotations

import threading
from typing import Any, cast

from ..errors import ContextTooLong, RequestError
from .request import Message

Prompt = str | list[Message] | list[int]


class PromptEncoder:
    """Turns prompts into token ids for one model, and says what its context has no room for. Safe for several threads."""

    def __init__(self, tokenizer: Any, *, vocab_size: int, max_context: int):
        self.tokenizer, self.vocab_size, self.max_context = tokenizer, vocab_size, max_context
        self._tokenizing = threading.Lock()  # fast tokenizers dislike being set up by two threads at once

    def encode(self, prompt: Prompt) -> list[int]:
        """The tokens of text, of chat messages through the model's template, or of token ids as they are.

        Raises `RequestError` if there are none, if one is outside the vocabulary, and for messages that the template refuses.
        """
        token_ids: list[int]
        if isinstance(prompt, str):
            token_ids = self._tokenized(prompt)
        elif prompt and isinstance(prompt[0], dict):
            token_ids = self._tokenized(self._rendered(cast(list[Message], prompt)), add_special_tokens=False)
        else:
            token_ids = list(cast(list[int], prompt))
        if not token_ids:
            raise RequestError("the prompt is empty: it has no tokens")
        outside = next((token for token in token_ids if not 0 <= token < self.vocab_size), None)
        if outside is not None:
            raise RequestError(f"token id {outside} is outside the vocabulary of {self.vocab_size}")
        return token_ids

    def check_room(self, num_tokens: int, max_tokens: int) -> None:
        """Raise `ContextTooLong` if a prompt and its answer do not fit the context together."""
        if num_tokens + max_tokens > self.max_context:
            raise ContextTooLong(
                f"the prompt has {num_tokens} tokens and max_tokens is {max_tokens}, "
                f"together at most {self.max_context} fit the context"
            )

    def _tokenized(self, text: str, **options: bool) -> list[int]:
        with self._tokenizing:
            return list(self.tokenizer(text, **options)["input_ids"])

    def _rendered(self, messages: list[Message]) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            raise RequestError("the model has no chat template; send the prompt as text")
        try:
            return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # jinja's errors: a role or message that the template refuses
            raise RequestError(f"the model's chat template refuses these messages: {error}") from error
