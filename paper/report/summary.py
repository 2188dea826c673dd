"""The paper's averages beside ours, method by method, each with its scale and the command that made it.

summary(ledger.rows())      # Markdown lines
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..runs import glue, reasoning
from ..tuning import encoders
from . import quoted as paper
from .quality import TITLES, panels, quality
from .scores import Row, label_of

FIELDS = (  # settings that the commands have an option for
    "model", "rows", "validation", "test", "questions", "epochs", "batch_size", "new_tokens", "bf16", "search_epochs",
    "head_learning_rate", "frozen_pooler",
)  # fmt: skip


def summary(rows: Sequence[Row]) -> list[str]:
    """A table for each experiment of which the paper prints an average and we have finished runs."""
    text, found = [], quality(rows)
    for panel, group, search in panels(rows):
        own = [row for row in found if row["panel"] == panel]
        if not own:
            continue
        lines = ["| method | paper's average | here | trainable here |", "| :-- | --: | --: | --: |"]
        for row in own:
            quoted = paper.average(panel, row["method"])
            told = f"{quoted[1]:.1f} ({quoted[0]})" if quoted else "–"
            spread = f" ± {100 * row['deviation']:.1f}" if row["deviation"] != "" else ""
            score = f"{100 * row['score']:.1f}{spread}"
            lines.append(f"| {label_of(row['method'])} | {told} | {score} | {row['trainable']:,} |")
        told = f"*{TITLES[panel]}: the paper's average over its tasks ({paper.source(panel)}); here over {own[0]['tasks']}; "
        text += [f"{told}{own[0]['scale']}: `{command_of(group, search)}`*", "", *lines, ""]
    return text or ["No finished run yet."]


def command_of(group: Sequence[Row], search: Sequence[Row]) -> str:
    """The command that makes a group's rows, with what differs from the command's own settings."""
    recipe = group[0]["recipe"]
    name, scale, preset = recipe["experiment"], recipe["scale"], recipe.get("preset", False)
    grid = recipe.get("grid", False)
    defaults = (encoders.SETTINGS if name == "glue" else reasoning.SETTINGS[name])[scale]
    words = ["python -m paper", name, *(["--scale full"] if scale == "full" else [])]
    for field in FIELDS:
        value = recipe.get(field)
        if field == "head_learning_rate" and value is None and name == "glue":
            value = 0 if getattr(defaults, field) else None  # the method's own
        if (
            value is None
            or value == getattr(defaults, field, None)
            or ((preset or grid) and field in ("epochs", "batch_size"))
        ):
            continue
        option = field.replace("_", "-")
        words.append(f"--{'' if value else 'no-'}{option}" if isinstance(value, bool) else f"--{option} {value}")
    usual = glue.TASKS[scale] if name == "glue" else reasoning.SUITES[name].tasks
    tasks = recipe["tasks"] if "tasks" in recipe else _distinct(group, "task")
    if set(tasks) != set(usual):
        words.append(f"--tasks {','.join(tasks)}")
    words.append(f"--methods {','.join(_distinct(group, 'method'))}")
    seeds = sorted({row["seed"] for row in group})
    if name == "glue":
        words += ["--presets"] if preset else [f"--rates {_rates(group, search)}"]
        words += ["--grid"] if grid and scale == "small" else []
        words += ["--no-grid"] if not (grid or preset) and scale == "full" else []
    else:
        words += _searched(search)
        words += ["--last-epoch"] if scale == "full" and not recipe.get("every_epoch") else []
        words += ["--every-epoch"] if scale == "small" and recipe.get("every_epoch") else []
        words += [f"--seed {seeds[0]}"] if seeds[0] else []
    words += [f"--seeds {len(seeds)}"] if len(seeds) > 1 or scale == "full" else []
    return " ".join(words)


def _searched(search: Sequence[Row]) -> list[str]:
    """The options of a suite's search."""
    if not search:
        return []
    recipe, tried = search[0]["recipe"], Counter(row["recipe"]["method"] for row in search)
    return [f"--rates {min(tried.values())}", f"--search-rows {recipe['rows']}", f"--held-out {recipe['questions']}"]


def _rates(group: Sequence[Row], search: Sequence[Row]) -> int:
    """How many learning rates every method of the group tried, or more."""
    tried: dict[tuple, set[float]] = {(row["recipe"]["task"], row["recipe"]["method"]): set() for row in group}
    for row in search:
        recipe = row["recipe"]
        if (pair := (recipe["task"], recipe["method"])) in tried:
            tried[pair].add(recipe["learning_rate"])
    return min(map(len, tried.values()))


def _distinct(group: Sequence[Row], name: str) -> list[str]:
    return list(dict.fromkeys(row["recipe"][name] for row in group))
