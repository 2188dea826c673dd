"""The paper's averages beside ours, method by method, each with its scale and the command that made it.

summary(ledger.rows())      # Markdown lines
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from . import decoders, encoders, glue, paper, reasoning
from .quality import TITLES, quality
from .scores import Row, glue_groups, label_of, scale_of

NEW_TOKENS = 128  # of `roadkit reproduce arithmetic`, in place of the settings'
DEFAULTS: dict[str, Any] = {
    "glue": encoders.Settings(),
    "commonsense": decoders.Settings(),
    "arithmetic": dataclasses.replace(decoders.Settings(), new_tokens=NEW_TOKENS),
}
TASKS = {"glue": glue.SMALL_TASKS} | {name: suite.tasks for name, suite in reasoning.SUITES.items()}


def summary(rows: Sequence[Row]) -> list[str]:
    """A table for each experiment of which the paper prints an average and we have finished runs."""
    text = []
    found = quality(rows)
    for panel in dict.fromkeys(row["panel"] for row in found):
        own = [row for row in found if row["panel"] == panel]
        group = [row for row in rows if _belongs(row["recipe"], own[0])]
        command = command_of(group, own, rates=_rates(rows, group[0]))
        lines = ["| method | paper's average | here | trainable here |", "| :-- | --: | --: | --: |"]
        for row in own:
            quoted = paper.average(panel, row["method"])
            told = f"{quoted[1]:.1f} ({quoted[0]})" if quoted else "–"
            spread = f" ± {100 * row['deviation']:.1f}" if row["deviation"] != "" else ""
            score = f"{100 * row['score']:.1f}{spread}"
            lines.append(f"| {label_of(row['method'])} | {told} | {score} | {row['trainable']:,} |")
        told = f"*{TITLES[panel]}: the paper's average over its tasks ({paper.source(panel)}); here over {own[0]['tasks']}; "
        text += [f"{told}{own[0]['scale']}: `{command}`*", "", *lines, ""]
    return text or ["No finished run yet."]


def command_of(group: Sequence[Row], own: Sequence[Mapping[str, Any]], *, rates: int | None) -> str:
    """The command that makes a group's rows, with what differs from the command's own settings.

    rates   learning rates tried; None where there was no search
    """
    recipe = group[0]["recipe"]
    name = recipe["experiment"]
    words = ["roadkit reproduce", name]
    for field in dataclasses.fields(DEFAULTS[name]):
        value = recipe.get(field.name)
        if value is None or value == getattr(DEFAULTS[name], field.name):
            continue
        option = f"--{field.name.replace('_', '-')}"
        words.append(option if value is True else f"{option} {value}")
    tasks = own[0]["tasks"].split()
    if set(tasks) != set(TASKS[name]):
        words.append(f"--tasks {','.join(tasks)}")
    words.append(f"--methods {','.join(row['method'] for row in own)}")
    words += [f"--rates {rates}"] if rates else []
    words += [f"--seeds {seeds}"] if name == "glue" and (seeds := len({row["seed"] for row in group})) > 1 else []
    return " ".join(words)


def _rates(rows: Sequence[Row], one: Row) -> int | None:
    """How many learning rates every method tried, or more, in the search for the group that `one` belongs to."""
    if one["recipe"]["experiment"] != "glue":
        return None
    searches = [search for group, search in glue_groups(_glue(rows)) if one in group]
    tried: dict[tuple, set[float]] = {}
    for row in searches[0]:
        recipe = row["recipe"]
        tried.setdefault((recipe["task"], recipe["method"]), set()).add(recipe["learning_rate"])
    return min(map(len, tried.values()), default=None)


def _glue(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["recipe"].get("experiment") == "glue"]


def _belongs(recipe: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    return recipe.get("experiment") == row["panel"] and row["scale"].startswith(_start(recipe))


def _start(recipe: Mapping[str, Any]) -> str:
    """What every seed's scale has in common."""
    return scale_of(recipe, 1).rpartition(", ")[0]
