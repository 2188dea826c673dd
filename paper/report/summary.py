"""The paper's averages beside ours, method by method, each with its scale and the command that made it.

summary_lines(ledger.rows())      # Markdown
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..ledger import LedgerRow
from ..runs.glue import TASKS_AT
from ..runs.reasoning import SUITE_SCALES
from ..scoring.suites import SUITES
from ..tuning.encoders import ENCODER_SCALES
from .quality import TITLES, quality_data, quality_panels
from .quoted import quoted_average, quoted_source
from .wording import label_of

FIELDS = (  # settings for which the commands have an option
    "model", "rows", "validation", "test", "questions", "epochs", "batch_size", "new_tokens", "bf16", "search_epochs",
    "head_learning_rate", "frozen_pooler",
)  # fmt: skip


def summary_lines(rows: Sequence[LedgerRow]) -> list[str]:
    """A table for each experiment that has finished runs and of which the paper prints an average."""
    text, found = [], quality_data(rows)
    for panel, group, search in quality_panels(rows):
        own = [row for row in found if row["panel"] == panel]
        if not own:
            continue
        lines = ["| method | paper's average | here | trainable here |", "| :-- | --: | --: | --: |"]
        for row in own:
            quoted = quoted_average(panel, row["method"])
            told = f"{quoted[1]:.1f} ({quoted[0]})" if quoted else "–"
            spread = f" ± {100 * row['deviation']:.1f}" if row["deviation"] != "" else ""
            score = f"{100 * row['score']:.1f}{spread}"
            lines.append(f"| {label_of(row['method'])} | {told} | {score} | {row['trainable']:,} |")
        told = f"*{TITLES[panel]}: the paper's average over its tasks ({quoted_source(panel)}); here over {own[0]['tasks']}; "
        text += [f"{told}{own[0]['scale']}: `{command_of(group, search)}`*", "", *lines, ""]
    return text or ["No finished run yet."]


def command_of(group: Sequence[LedgerRow], search: Sequence[LedgerRow]) -> str:
    """The command that makes these runs; it names the settings that differ from the scale's."""
    setup = group[0]["recipe"]
    name, scale, preset = setup["experiment"], setup["scale"], setup.get("preset", False)
    grid = setup.get("grid", False)
    defaults = (ENCODER_SCALES if name == "glue" else SUITE_SCALES[name])[scale]
    words = ["python -m paper", name, *(["--scale full"] if scale == "full" else [])]
    for field in FIELDS:
        value = setup.get(field)
        if field == "head_learning_rate" and value is None and name == "glue":
            value = 0 if getattr(defaults, field) else None  # the method's own
        if (
            value is None
            or value == getattr(defaults, field, None)
            or ((preset or grid) and field in ("epochs", "batch_size"))
        ):
            continue
        option = field.replace("_", "-")
        if value is False:
            words.append(f"--no-{option}")
        else:
            words.append(f"--{option}" if value is True else f"--{option} {value}")
    usual = TASKS_AT[scale] if name == "glue" else SUITES[name].tasks
    tasks = setup["tasks"] if "tasks" in setup else _distinct(group, "task")
    if set(tasks) != set(usual):
        words.append(f"--tasks {','.join(tasks)}")
    words.append(f"--methods {','.join(_distinct(group, 'method'))}")
    seeds = sorted({row["seed"] for row in group})
    if name == "glue":
        words += ["--presets"] if preset else [f"--rates {_rates(group, search)}"]
        words += ["--grid"] if grid and scale == "small" else []
        words += ["--no-grid"] if not (grid or preset) and scale == "full" else []
    else:
        words += _search_options(search)
        words += ["--last-epoch"] if scale == "full" and not setup.get("every_epoch") else []
        words += ["--every-epoch"] if scale == "small" and setup.get("every_epoch") else []
        words += [f"--seed {seeds[0]}"] if seeds[0] else []
    words += [f"--seeds {len(seeds)}"] if len(seeds) > 1 or scale == "full" else []
    return " ".join(words)


def _search_options(search: Sequence[LedgerRow]) -> list[str]:
    """The options that ask for a suite's search."""
    if not search:
        return []
    setup, tried = search[0]["recipe"], Counter(row["recipe"]["method"] for row in search)
    return [f"--rates {min(tried.values())}", f"--search-rows {setup['rows']}", f"--held-out {setup['questions']}"]


def _rates(group: Sequence[LedgerRow], search: Sequence[LedgerRow]) -> int:
    """How many learning rates every method of the group tried at least."""
    tried: dict[tuple, set[float]] = {(row["recipe"]["task"], row["recipe"]["method"]): set() for row in group}
    for row in search:
        setup = row["recipe"]
        if (pair := (setup["task"], setup["method"])) in tried:
            tried[pair].add(setup["learning_rate"])
    return min(map(len, tried.values()))


def _distinct(group: Sequence[LedgerRow], name: str) -> list[str]:
    return list(dict.fromkeys(row["recipe"][name] for row in group))
