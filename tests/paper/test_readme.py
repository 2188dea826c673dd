"""paper/README.md names every command and every file, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from paper.cli import app

FOLDER = Path(__file__).resolve().parents[2] / "paper"
README = (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_commands_are_those_that_exist():
    named = set(re.findall(r"python -m paper ([a-z][\w-]*)", README))
    assert named == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_the_options_named_are_options():
    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    options = {name for command in commands for parameter in command.params for name in parameter.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", README)) - {"--help"} <= options


def test_the_tree_is_the_folder():
    tree = README.rsplit("```", 2)[1].strip("\n")
    named, folder = set(), Path()
    for line in tree.splitlines():
        name, purpose = line.split(maxsplit=1)
        assert purpose
        if name.endswith("/"):
            folder = Path(name)
        else:
            named.add(folder / name if line.startswith(" ") else Path(name))
    files = {
        path.relative_to(FOLDER)
        for path in FOLDER.rglob("*")
        if path.is_file() and path.suffix in (".py", ".json") and path.name != "__init__.py"
    }
    assert named == files
