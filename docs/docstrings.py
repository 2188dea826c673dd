"""Reads the source's own ways of describing names, for the API pages that `make docs` builds.

A docstring's aligned list becomes a Markdown definition list, and the comment behind a field its description:

    slots      how many adapters a step may hold,          →    `slots`
               by default one for each request                  :   how many adapters a step may hold, by default …

mkdocs.yml names this file as an extension of griffe, the parser behind mkdocstrings.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ITEM = re.compile(r"\w[\w ,./…]* {2,}(?=[^\s#])")
NAME = re.compile(r"[A-Za-z_]\w*")
COMMENT = re.compile(r"  # (?!type:|pyright:|noqa|fmt:)(.+)$")


def definition_lists(text: str) -> str:
    """The docstring with every run of aligned `name  meaning` lines as a definition list.

    A run begins with a line that has two spaces or more after its name. The column of the first meaning is that of all
    others, and of lines that go on with one.
    """
    lines: list[str] = []
    column = 0  # of the meanings in the current run; 0 outside one
    for line in text.splitlines():
        begins = ITEM.match(line)
        if begins and not column:
            column = begins.end()
            lines.append("")
        name, meaning = line[:column], line[column:]
        if column and name.strip() and name.endswith(" ") and not name.startswith(" "):
            lines += [NAME.sub(r"`\g<0>`", name.strip()), f":   {meaning}", ""]
        elif column and meaning and not name.strip():
            lines[-1:] = [f"    {meaning.strip()}", ""]
        else:
            column = 0
            lines.append(line)
    return "\n".join(lines)


class SourceDescriptions(griffe.Extension):
    """Rewrites each object's docstring once, when the object has been parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = definition_lists(obj.docstring.value)
        elif obj.is_attribute and obj.lines and (comment := COMMENT.search(obj.lines[0])):
            obj.docstring = griffe.Docstring(comment[1], parent=obj)
