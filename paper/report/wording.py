"""What tables and figures call methods, scales and machines.

label_of("road_1")                                                               # "RoAd1"
scale_of({"scale": "small", "model": "minilm", "rows": 200, "epochs": 3}, 1)     # "small: minilm, 200 training rows, …"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ledger import LedgerRow
from ..runs.multimodal import MULTIMODAL_LABELS
from ..tuning.decoders import DECODER_LABELS
from ..tuning.methods import ALL_METHODS

LABELS = DECODER_LABELS | MULTIMODAL_LABELS | {name: method.label for name, method in ALL_METHODS.items()}


def label_of(method: str) -> str:
    """A method's name in tables and figures."""
    return LABELS.get(method, method)


def scale_of(setup: Mapping[str, Any], seeds: int) -> str:
    """The scale of a run's setup: "small: minilm, 200 training rows, 3 epochs, 1 seed"."""
    own_rate = "" if setup.get("head_learning_rate") else ", classifier at the method's learning rate"
    parts = {
        "model": str(setup.get("model")),
        "rows": f"{setup.get('rows')} training rows",
        "epochs": _told_epochs(setup),
        "test": f"up to {setup.get('test')} test rows",
        "questions": f"{setup.get('questions')} questions a task",
        "bf16": "16-bit arithmetic",
        "head_learning_rate": f"classifier at {setup.get('head_learning_rate')}",
        "frozen_pooler": f"pooler frozen{own_rate}",
        "every_epoch": "the epoch that is best on these questions",
    }
    told = [part for name, part in parts.items() if setup.get(name)] + [f"{seeds} seed{'s' * (seeds != 1)}"]
    return f"{setup['scale']}: {', '.join(told)}"


def group_scale(group: Sequence[LedgerRow]) -> str:
    """`scale_of` runs that belong together."""
    return scale_of(group[0]["recipe"], len({row["seed"] for row in group}))


def rates_of(setup: Mapping[str, Any]) -> str:
    """What the numbers in brackets count, and in which runs."""
    if setup.get("grid"):
        return "in brackets how many settings (learning rate, epochs, batch size) were tried"
    if setup.get("search_epochs") is None:
        return "in brackets how many learning rates were tried"
    return f"learning rates chosen in runs of {_epochs(setup['search_epochs'])}, in brackets how many were tried"


def machine_of(row: LedgerRow) -> str:
    """The machine that a run ran on: "2 x86_64 cores, no GPU"."""
    found = row["machine"]
    return f"{found['cpus']} {found['architecture']} cores, {found['accelerator'] or 'no GPU'}"


def _told_epochs(setup: Mapping[str, Any]) -> str:
    if setup.get("preset"):
        return "the paper's settings of each task"
    return "10 or 20 epochs, batches of 16 or 32" if setup.get("grid") else _epochs(setup.get("epochs"))


def _epochs(count: Any) -> str:
    return f"{count} epoch{'s' * (count != 1)}"
