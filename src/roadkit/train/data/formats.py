"""The formats people have, recognised by their columns, and what a row of each says.

    layout = detect(table, recipe, chat=True)     # layout.name == "alpaca"
    example = layout.read(table[0])               # Dialogue([user, assistant], first_answer=1)

| format            | columns                                     | the loss counts                 |
|-------------------|---------------------------------------------|---------------------------------|
| messages          | messages: [{role, content}]                 | every assistant message         |
| sharegpt          | conversations: [{from, value}]              | every message from gpt          |
| prompt_completion | prompt, completion (text or messages)       | the completion                  |
| alpaca            | instruction, output, input (may be missing) | the output                      |
| text              | text                                        | everything                      |
| sentences         | sentence1 (or sentence, text), label, sentence2 (may be missing) | a label a row |

A format is an entry of `FORMATS`: the columns that it needs, those it may have, and the function that reads a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import RecipeError, nearest
from ..recipe import Recipe
from .examples import Dialogue, Example, LabelledText, Message, Passage
from .labels import Classes, find_classes, read_label
from .tables import Row, Table

SENTENCE_NAMES = ("sentence1", "sentence", "text")
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}
ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n"
)


@dataclass(frozen=True)
class RowLayout:
    """How a table's rows are read: their format, and which of the table's columns plays which role in it.

    columns    role → column
    chat       rows become dialogues for the chat template; otherwise plain text
    system     a message put before every dialogue that does not begin with one of its own
    classes    of labels, as `find_classes` gives them
    """

    name: str
    columns: Mapping[str, str]
    chat: bool
    system: str | None = None
    classes: Classes = None

    def read(self, row: Row) -> Example:
        """What a row says. Raises `RecipeError` naming file, row and column."""
        return FORMATS[self.name].read(self, row)

    def text(self, row: Row, role: str) -> str:
        """The cell that plays a role, which must be text."""
        return row.text(self.columns[role])

    def dialogue(self, row: Row, messages: list[Message], first_answer: int = 0) -> Dialogue:
        """A row's messages, with the system message before them. Raises `RecipeError` if no answer is among them."""
        if not self.chat:
            raise RecipeError(
                f"{row.where}: messages need a chat template, which this model's tokenizer lacks "
                "(or chat_template is false); use prompt and completion columns"
            )
        if not any(message["role"] == "assistant" for message in messages[first_answer:]):
            raise RecipeError(f"{row.where}: no message is the assistant's, so there is nothing to learn")
        if self.system is not None and messages[0]["role"] != "system":
            return Dialogue([{"role": "system", "content": self.system}, *messages], first_answer + 1)
        return Dialogue(messages, first_answer)


def detect(table: Table, recipe: Recipe, *, chat: bool) -> RowLayout:
    """The layout of a table, by the recipe's `format` or else by the columns of the first row.

    chat    the tokenizer has a chat template

    Raises `RecipeError` that lists the columns there are and the formats that would be read.
    """
    if unknown := [role for role in recipe.columns if role not in ROLES]:
        raise RecipeError(
            f"columns: no format has a {unknown[0]!r}{nearest(unknown[0], ROLES)}; use {', '.join(ROLES)}"
        )
    present = table.columns
    if recipe.task != "causal":
        candidates = ["sentences"]
    elif recipe.format != "auto":
        candidates = [recipe.format]
    else:
        candidates = [name for name in FORMATS if name != "sentences"]
    for name in candidates:
        columns = _columns(name, recipe.columns, present)
        if all(columns[role] in present for role in FORMATS[name].required):
            classes = find_classes(table, columns["label"], recipe) if name == "sentences" else None
            return RowLayout(name, columns, chat and recipe.chat_template and name != "text", recipe.system, classes)
    if len(candidates) == 1:
        required = FORMATS[candidates[0]].required
        columns = _columns(candidates[0], recipe.columns, present)
        missing = next(columns[role] for role in required if columns[role] not in present)
        raise RecipeError(
            f"{table[0].where}: no column {missing!r}{nearest(missing, present)} (it has {', '.join(present)}); "
            f"format {candidates[0]} needs {', '.join(required)}: name yours with columns: {{{required[0]}: …}}"
        )
    needs = "; ".join(f"{name}: {', '.join(FORMATS[name].required)}" for name in candidates)
    raise RecipeError(
        f"{table[0].where}: the columns {', '.join(present)} are no known format. Name yours, for example "
        f"columns: {{prompt: {present[0]}, completion: {present[-1]}}}. Formats: {needs}"
    )


def _columns(name: str, given: Mapping[str, str], present: list[str]) -> dict[str, str]:
    """role → column of one format: as the recipe renames it, else of the role's own name."""
    columns = {role: given.get(role, role) for role in FORMATS[name].required + FORMATS[name].optional}
    if name == "sentences":
        if "sentence1" not in given:
            columns["sentence1"] = next((column for column in SENTENCE_NAMES if column in present), "sentence1")
        if columns["sentence2"] not in present:
            del columns["sentence2"]  # either every row is a pair or none is
    return columns


def _read_messages(layout: RowLayout, row: Row) -> Dialogue:
    (column,) = layout.columns.values()
    return layout.dialogue(row, _messages(row, column))


def _read_prompt_completion(layout: RowLayout, row: Row) -> Dialogue | Passage:
    columns = [layout.columns[role] for role in ("prompt", "completion")]
    if any(isinstance(row.value(column), list) for column in columns):
        asked, answered = (_messages(row, column) for column in columns)
        return layout.dialogue(row, asked + answered, len(asked))
    prompt, completion = (row.text(column) for column in columns)
    if not layout.chat:
        return Passage(prompt, completion)
    return layout.dialogue(row, _turn(prompt, completion), 1)


def _read_alpaca(layout: RowLayout, row: Row) -> Dialogue | Passage:
    instruction, output = layout.text(row, "instruction"), layout.text(row, "output")
    given = layout.text(row, "input") if row.cells.get(layout.columns["input"]) else ""
    if layout.chat:
        prompt = f"{instruction}\n\n{given}" if given else instruction
        return layout.dialogue(row, _turn(prompt, output), 1)
    block = f"### Input:\n{given}\n\n" if given else ""
    paired = ", paired with an input that provides further context" if given else ""
    return Passage(ALPACA.format(paired=paired, instruction=instruction, input=block), output)


def _read_text(layout: RowLayout, row: Row) -> Passage:
    return Passage("", layout.text(row, "text"))


def _read_sentences(layout: RowLayout, row: Row) -> LabelledText:
    first = layout.text(row, "sentence1")
    second = layout.text(row, "sentence2") if "sentence2" in layout.columns else None
    return LabelledText(first, second, read_label(row, layout.columns["label"], layout.classes))


def _turn(prompt: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _messages(row: Row, column: str) -> list[Message]:
    """A cell of messages in either spelling, {role, content} or {from, value}."""
    found = row.value(column)
    if not isinstance(found, list) or not found:
        raise RecipeError(f"{row.where_is(column)}: must be a list of messages, is {_shown(found)}")
    return [_message(message, f"{row.where_is(column)}, message {i}") for i, message in enumerate(found)]


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise RecipeError(f"{where}: must be an object with role and content, is {_shown(message)}")
    speaker, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if not isinstance(content, str):
        raise RecipeError(f"{where}: its content must be text, is {_shown(content)}")
    role = SHAREGPT_ROLES.get(str(speaker), speaker if "role" in message else None)
    if not isinstance(role, str):
        raise RecipeError(f"{where}: from {_shown(speaker)} is none of {', '.join(SHAREGPT_ROLES)}")
    return {"role": role, "content": content}


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "…"


@dataclass(frozen=True)
class Format:
    """The roles that columns play in a format, and how a row is read that has them."""

    required: tuple[str, ...]
    read: Callable[[RowLayout, Row], Example]
    optional: tuple[str, ...] = ()


FORMATS = {  # in the order in which they are tried
    "messages": Format(("messages",), _read_messages),
    "sharegpt": Format(("conversations",), _read_messages),
    "prompt_completion": Format(("prompt", "completion"), _read_prompt_completion),
    "alpaca": Format(("instruction", "output"), _read_alpaca, optional=("input",)),
    "text": Format(("text",), _read_text),
    "sentences": Format(("sentence1", "label"), _read_sentences, optional=("sentence2",)),
}
ROLES = sorted({"adapter", *(role for each in FORMATS.values() for role in each.required + each.optional)})
