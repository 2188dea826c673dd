"""What a row of training data says, whatever the format it was written in.

Dialogue([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}], first_answer=1)
Passage("2+2=", "4")
LabelledText("A man sleeps.", "A man is awake.", label=1)
"""

from __future__ import annotations

from dataclasses import dataclass

Message = dict[str, str]  # {"role": …, "content": …}


@dataclass(frozen=True)
class Dialogue:
    """Messages for the chat template. The assistant's bear the loss, from message number `first_answer` on."""

    messages: list[Message]
    first_answer: int = 0


@dataclass(frozen=True)
class Passage:
    """Plain text: a prompt, which may be empty, and its continuation, which bears the loss."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class LabelledText:
    """A sentence or a pair of sentences, and its class number or score."""

    sentence1: str
    sentence2: str | None
    label: int | float


Example = Dialogue | Passage | LabelledText
