"""GLUE as the paper scores it (§C.1): which tasks, and a development set cut into validation and test.

validation, test = split_dev(dev, seed=0)
TASKS["cola"].metric            # "matthews"

Sources: arXiv 2409.00119v2, tables 2 and C.1: which metric of a task's (huggingface/evaluate, metrics/glue/glue.py) is
reported, and the sizes of both parts. MNLI is scored on its matched rows.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from roadkit.errors import RecipeError
from roadkit.train.data.tables import Table, read_table

LARGE, VALIDATION = 2000, 1000  # development sets above LARGE rows give VALIDATION of them, others half


@dataclass(frozen=True)
class Task:
    """One task: its metric, its files below a data folder, and its name in the hub's `nyu-mll/glue`."""

    metric: str
    train: str
    dev: str
    hub: str
    num_labels: int = 2
    columns: dict[str, str] = field(default_factory=dict)
    dev_split: str = "validation"

    @property
    def kind(self) -> str:
        return "regression" if self.num_labels == 1 else "classification"


def _task(metric: str, name: str, *, train: str = "train.jsonl", hub: str | None = None, **more) -> Task:
    return Task(metric, f"glue/{name}_{train}", f"glue/{name}_dev.jsonl", f"nyu-mll/glue:{hub or name}", **more)


TASKS = {
    "rte": _task("accuracy", "rte"),
    "mrpc": _task("accuracy", "mrpc", train="train.jsonl.gz"),
    "stsb": _task("pearson", "stsb", num_labels=1),
    "cola": _task("matthews", "cola"),
    "sst2": _task("accuracy", "sst2", train="sentences_train.jsonl"),
    "qnli": _task("accuracy", "qnli", columns={"sentence1": "question", "sentence2": "sentence"}),
    "qqp": _task("accuracy", "qqp", columns={"sentence1": "question1", "sentence2": "question2"}),
    "mnli": _task(
        "accuracy", "mnli", num_labels=3, columns={"sentence1": "premise", "sentence2": "hypothesis"},
        dev_split="validation_matched",
    ),
}  # fmt: skip


def load(task: Task, data: Path | None) -> tuple[Table, Table]:
    """Training and development rows, from files below `data`, or from the hub where that is None."""
    if data is None:
        return read_table(task.hub, split="train"), read_table(task.hub, split=task.dev_split)
    for name in (task.train, task.dev):
        if not (data / name).is_file():
            raise RecipeError(
                f"{data / name} is missing: put the task's rows there (JSON Lines with sentence1, sentence2, label), "
                f"or run with --scale full, which reads {task.hub} from the hub"
            )
    return read_table(str(data / task.train)), read_table(str(data / task.dev))


def split_dev(dev: Table, *, seed: int) -> tuple[Table, Table]:
    """→ validation and test: 1,000 rows and the rest of a development set above 2,000 rows, else halves.

    An odd row goes to validation, as in table C.1: RTE 139 and 138, CoLA 522 and 521. (LoReFT's train.py gives it to the
    test part, and cuts 1,000 rows off only above 5,000.)
    """
    order = random.Random(seed).sample(range(len(dev)), len(dev))
    count = VALIDATION if len(dev) > LARGE else (len(dev) + 1) // 2
    return dev.take(sorted(order[:count])), dev.take(sorted(order[count:]))


def sample_rows(table: Table, count: int | None, *, seed: int) -> Table:
    """`count` rows drawn by the seed, in file order; all of them where there are no more."""
    if count is None or count >= len(table):
        return table
    return table.take(sorted(random.Random(seed).sample(range(len(table)), count)))
