"""Text out of tokens: incremental detokenisation, and the strings at which an answer stops.

detokenizer = Detokenizer(tokenizer, stop=("\n\n",))
new = detokenizer.push(token_id)      # text that can be shown now; detokenizer.stopped tells when to end
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class Detokenizer:
    """Turns generated tokens into text as they come. Holds back what could be the beginning of a stop string.

    stop     strings that end the text; they are left out of it
    before   the prompt's tokens. SentencePiece's decoders drop the first space of a text: decoded behind the prompt's last
             tokens, an answer keeps its own (as in vLLM)
    """

    def __init__(self, tokenizer: Any, stop: tuple[str, ...] = (), before: Sequence[int] = ()):
        self._tokenizer, self._stop = tokenizer, stop
        self._before = self._end_of(before)
        self._stream = DecodeStream(ids=self._before, skip_special_tokens=True)
        self._token_ids: list[int] = []
        self._pending = ""
        self.text = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that became certain."""
        self._token_ids.append(token_id)
        self._pending += self._step(token_id)
        found = [at for at in (self._pending.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            return self._emit(min(found))
        held = max((_overlap(self._pending, stop) for stop in self._stop), default=0)
        return self._emit(len(self._pending) - held)

    def finish(self) -> str:
        """The text still held back, with what an incomplete last character decodes to."""
        if self.stopped:
            return ""
        known, whole = self._decode(self._before), self._decode([*self._before, *self._token_ids])
        whole = whole[len(known) :] if whole.startswith(known) else self._decode(self._token_ids)
        if whole.startswith(self.text + self._pending):
            self._pending = whole[len(self.text) :]
        return self._emit(len(self._pending))

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True) if token_ids else ""

    def _end_of(self, token_ids: Sequence[int]) -> list[int]:
        """A few of the last tokens, so many that their text is whole characters; none if that takes more than 20."""
        for count in range(4, 24, 4):
            if "\N{REPLACEMENT CHARACTER}" not in self._decode(end := list(token_ids[-count:])):
                return end
        return []

    def _step(self, token_id: int) -> str:
        try:
            return self._stream.step(self._tokenizer._tokenizer, token_id) or ""
        except Exception:  # all that tokenizers raises, if bytes that are no text change what was decoded before
            self._stream = DecodeStream(skip_special_tokens=True)
            return "\N{REPLACEMENT CHARACTER}" + (self._stream.step(self._tokenizer._tokenizer, token_id) or "")

    def _emit(self, count: int) -> str:
        new, self._pending = self._pending[:count], self._pending[count:]
        self.text += new
        return new


def end_ids_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer, by the model's settings or the tokenizer's."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config.get_text_config(), tokenizer):
        ids = getattr(source, "eos_token_id", None)
        if isinstance(ids, list | tuple):
            found |= set(ids)
        elif ids is not None:
            found.add(ids)
    return frozenset(found)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
