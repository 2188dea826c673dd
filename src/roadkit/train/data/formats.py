"""The formats people have, recognised by their columns, and what a row of each means.

    layout = detect(table, recipe, chat=True)            # layout.name == "alpaca"
    example = read_example(table, 0, layout, recipe)     # Dialogue([user, assistant])

| format            | columns                                     | the loss counts                 |
|-------------------|---------------------------------------------|---------------------------------|
| messages          | messages: [{role, content}]                 | every assistant message         |
| sharegpt          | conversations: [{from, value}]              | every message from gpt          |
| prompt_completion | prompt, completion (text or messages)       | the completion                  |
| alpaca            | instruction, output, input (may be missing) | the output                      |
| text              | text                                        | everything                      |
| sentences         | sentence1 (or sentence, text), label, sentence2 (may be missing) | a label a row |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import RecipeError, nearest
from ..recipe import Recipe
from .tables import Table

Message = dict[str, str]

REQUIRED: dict[str, tuple[str, ...]] = {  # in the order in which they are tried
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
    "sentences": ("sentence1", "label"),
}
OPTIONAL = {"alpaca": ("input",), "sentences": ("sentence2",)}
ROLES = sorted({"adapter", *(role for roles in (*REQUIRED.values(), *OPTIONAL.values()) for role in roles)})
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
class Layout:
    """A recognised format: `columns` maps its roles to the table's columns; `chat` uses the chat template."""

    name: str
    columns: Mapping[str, str]
    chat: bool


@dataclass(frozen=True)
class Dialogue:
    """Messages for the chat template; messages of the assistant from number `first_answer` on bear the loss."""

    messages: list[Message]
    first_answer: int = 0


@dataclass(frozen=True)
class Passage:
    """Plain text: a prompt, which may be empty, and the continuation that bears the loss."""

    prompt: str
    answer: str


def detect(table: Table, recipe: Recipe, *, chat: bool) -> Layout:
    """The format of a table, by the recipe's `format` or by the columns of its first row.

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
        candidates = [name for name in REQUIRED if name != "sentences"]
    for name in candidates:
        columns = _columns(name, recipe.columns, present)
        if all(columns[role] in present for role in REQUIRED[name]):
            return Layout(name, columns, chat and recipe.chat_template and name != "text")
    if len(candidates) == 1:
        columns = _columns(candidates[0], recipe.columns, present)
        missing = next(columns[role] for role in REQUIRED[candidates[0]] if columns[role] not in present)
        raise RecipeError(
            f"{table.where(0)}: no column {missing!r}{nearest(missing, present)} (it has {', '.join(present)}); "
            f"format {candidates[0]} needs {', '.join(REQUIRED[candidates[0]])}: "
            f"name yours with columns: {{{REQUIRED[candidates[0]][0]}: …}}"
        )
    needs = "; ".join(f"{name}: {', '.join(REQUIRED[name])}" for name in candidates)
    raise RecipeError(
        f"{table.where(0)}: the columns {', '.join(present)} are no known format. Name yours, for example "
        f"columns: {{prompt: {present[0]}, completion: {present[-1]}}}. Formats: {needs}"
    )


def _columns(name: str, given: Mapping[str, str], present: list[str]) -> dict[str, str]:
    columns = {role: given.get(role, role) for role in REQUIRED[name] + OPTIONAL.get(name, ())}
    if name == "sentences" and "sentence1" not in given:
        columns["sentence1"] = next((column for column in SENTENCE_NAMES if column in present), "sentence1")
    return columns


def read_example(table: Table, index: int, layout: Layout, recipe: Recipe) -> Dialogue | Passage:
    """One row as text to learn. Raises `RecipeError` naming file, row and column."""
    columns = layout.columns
    if layout.name == "text":
        return Passage("", table.text(index, columns["text"]))
    if layout.name in ("messages", "sharegpt"):
        (column,) = columns.values()
        messages = _messages(table, index, column)
        return _dialogue(table, index, messages, 0, layout, recipe)
    if layout.name == "alpaca":
        return _alpaca(table, index, layout, recipe)
    prompt, completion = (table.value(index, columns[role]) for role in ("prompt", "completion"))
    if isinstance(prompt, list) or isinstance(completion, list):
        asked = _messages(table, index, columns["prompt"])
        messages = asked + _messages(table, index, columns["completion"])
        return _dialogue(table, index, messages, len(asked), layout, recipe)
    prompt, completion = (table.text(index, columns[role]) for role in ("prompt", "completion"))
    if not layout.chat:
        return Passage(prompt, completion)
    return _dialogue(table, index, _turn(prompt, completion), 1, layout, recipe)


def _alpaca(table: Table, index: int, layout: Layout, recipe: Recipe) -> Dialogue | Passage:
    instruction = table.text(index, layout.columns["instruction"])
    output = table.text(index, layout.columns["output"])
    given = table.text(index, layout.columns["input"]) if table.rows[index].get(layout.columns["input"]) else ""
    if layout.chat:
        prompt = f"{instruction}\n\n{given}" if given else instruction
        return _dialogue(table, index, _turn(prompt, output), 1, layout, recipe)
    block = f"### Input:\n{given}\n\n" if given else ""
    paired = ", paired with an input that provides further context" if given else ""
    return Passage(ALPACA.format(paired=paired, instruction=instruction, input=block), output)


def _turn(prompt: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _dialogue(
    table: Table, index: int, messages: list[Message], first_answer: int, layout: Layout, recipe: Recipe
) -> Dialogue:
    if not layout.chat:
        raise RecipeError(
            f"{table.where(index)}: messages need a chat template, which this model's tokenizer lacks "
            "(or chat_template is false); use prompt and completion columns"
        )
    if not any(message["role"] == "assistant" for message in messages[first_answer:]):
        raise RecipeError(f"{table.where(index)}: no message is the assistant's, so there is nothing to learn")
    if recipe.system is not None and messages[0]["role"] != "system":
        return Dialogue([{"role": "system", "content": recipe.system}, *messages], first_answer + 1)
    return Dialogue(messages, first_answer)


def _messages(table: Table, index: int, column: str) -> list[Message]:
    """A cell of messages in either spelling, {role, content} or {from, value}."""
    found = table.value(index, column)
    if not isinstance(found, list) or not found:
        raise RecipeError(f"{table.where(index)}, column {column!r}: must be a list of messages, is {_shown(found)}")
    return [
        _message(message, f"{table.where(index)}, column {column!r}, message {i}") for i, message in enumerate(found)
    ]


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
