"""`Vocabulary`: what single tokens add to a text. A token may be part of a character.

vocabulary = Vocabulary(tokenizer)
vocabulary.text(318), vocabulary.bytes(318)
"""

from __future__ import annotations

import functools
from typing import Any


class Vocabulary:
    """Text and bytes of single tokens, for byte-level and SentencePiece vocabularies."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._byte_of = {character: byte for byte, character in _byte_characters().items()}
        self.text = functools.lru_cache(maxsize=65536)(self._text)

    def bytes(self, token_id: int) -> bytes:
        """What a token adds to the text."""
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        if piece is None:
            return b""
        if piece.startswith("<0x") and piece.endswith(">") and len(piece) == 6:
            return bytes([int(piece[3:5], 16)])
        if token_id in getattr(self._tokenizer, "all_special_ids", ()):
            return piece.encode()
        if "▁" in piece:
            return piece.replace("▁", " ").encode()
        if all(character in self._byte_of for character in piece):
            return bytes(self._byte_of[character] for character in piece)
        return piece.encode()

    def _text(self, token_id: int) -> str:
        """The token as text; OpenAI's `bytes:\\xe2` if it is part of a character."""
        raw = self.bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


@functools.cache
def _byte_characters() -> dict[int, str]:
    """GPT-2's printable character for every byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table, extra = {byte: chr(byte) for byte in printable}, 0
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + extra)
            extra += 1
    return table
