"""GLUE as the paper scores it (§C.1): its tasks, each with one metric, and a development set cut into validation and test.

    train, dev = load_glue("rte", None, scale="small")
    validation, test = split_dev(dev, seed=0)
    GLUE_TASKS["cola"].metric            # "matthews"

Sources: arXiv 2409.00119v2, tables 2 and C.1, for the metric that is reported of each task (of those in huggingface/evaluate,
metrics/glue/glue.py) and for the sizes of both parts. MNLI is scored on its matched rows.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from roadkit.errors import RecipeError, nearest
from roadkit.train.data.tables import Table

from ..data import read_rows

LARGE, VALIDATION = (
    2000,
    1000,
)  # a development set above LARGE rows gives VALIDATION of them, any other half of its rows


@dataclass(frozen=True)
class GlueTask:
    """One task: its metric, and its number of labels, 1 for a regression."""

    metric: str
    num_labels: int = 2

    @property
    def kind(self) -> str:
        return "regression" if self.num_labels == 1 else "classification"


GLUE_TASKS = {
    "rte": GlueTask("accuracy"),
    "mrpc": GlueTask("accuracy"),
    "stsb": GlueTask("pearson", num_labels=1),
    "cola": GlueTask("matthews"),
    "sst2": GlueTask("accuracy"),
    "qnli": GlueTask("accuracy"),
    "qqp": GlueTask("accuracy"),
    "mnli": GlueTask("accuracy", num_labels=3),
}
SMALL_TRAIN = {"sst2": "sst2_sentences_train"}  # whole sentences; GLUE's 67,349 rows are mostly phrases of them


def find_glue_task(name: str) -> GlueTask:
    """Raises `RecipeError` with the nearest name."""
    if name not in GLUE_TASKS:
        raise RecipeError(f"no task {name!r}{nearest(name, GLUE_TASKS)}; there are {', '.join(GLUE_TASKS)}")
    return GLUE_TASKS[name]


def load_glue(task: str, data: Path | None, *, scale: str) -> tuple[Table, Table]:
    """Training and development rows. `data` is the folder of `read_rows`."""
    train = SMALL_TRAIN.get(task, f"{task}_train") if scale == "small" else f"{task}_train"
    first, second = read_rows(data, f"glue/{train}", f"glue/{task}_dev")
    return first, second


def split_dev(dev: Table, *, seed: int) -> tuple[Table, Table]:
    """→ validation and test: 1,000 rows and the rest of a development set above 2,000 rows, else halves.

    An odd row goes to validation, as in table C.1: RTE 139 and 138, CoLA 522 and 521. (LoReFT's train.py gives it to the
    test part, and cuts 1,000 rows off only above 5,000.)
    """
    order = random.Random(seed).sample(range(len(dev)), len(dev))
    count = VALIDATION if len(dev) > LARGE else (len(dev) + 1) // 2
    return dev.take(sorted(order[:count])), dev.take(sorted(order[count:]))
