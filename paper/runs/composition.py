"""The composition experiment (RoAd §4.3): tasks trained into disjoint subspaces of one block, then used apart and together.

    run_composition(CompositionSettings(rows=64), Path("results/composition"), data=None)

Every arm is one training run: RoAd with a subspace for each of two, three or four tasks; LoReFT of rank 8 in the same way;
and whole RoAd interventions, each trained alone, whose product is a further arm. Two things are measured under every condition
(the base, each task's subspace, all of them): the held-out loss of each task, and the language of greedy answers to questions
of our own.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from roadkit import models
from roadkit.errors import RecipeError
from roadkit.intervene import Intervention, Positions, Subspace, site
from roadkit.intervene.sites import blocks, hidden_size
from roadkit.intervene.training import TaskRow, answer_losses, train, train_edits

from ..data import check_rows
from ..ledger import Ledger
from ..tuning.generation import answer_batch
from ..tuning.loreft import LoreftEdit
from .acting import Acting, acting_edit, acting_product, acting_subspaces
from .composition_tasks import TASK_ROWS, TEMPLATE, load_task
from .jobs import cpu_seconds, log

LAST = Positions(last=1)
QUESTIONS = (
    "How do I boil an egg?",
    "Name three animals that live in the sea.",
    "What is a good way to learn to swim?",
    "Explain what a library is for.",
    "How can I stop a program that hangs?",
    "Give me a tip for sleeping better.",
)


@dataclass(frozen=True)
class CompositionSettings:
    """What all arms share. As in the paper: 5 epochs, batches of 8, the middle block (its 16th of 32), the last token."""

    model: str = "smollm2"
    scale: str = "small"
    layer: int | None = None  # None: the middle block
    group_size: int = 64
    rows: int = 64
    held_out: int = 48
    epochs: int = 5
    batch_size: int = 8
    learning_rate: float = 5e-3
    max_length: int = 96
    new_tokens: int = 32
    rank: int = 8


@dataclass(frozen=True)
class Arm:
    """One training run. `whole`: its task has no subspace but all of the block, and takes part in a product."""

    name: str
    method: str
    tasks: tuple[str, ...]
    whole: bool = False


ARMS = (
    Arm("road, 2 subspaces", "road", ("german", "instruct")),
    Arm("loreft, 2 subspaces", "loreft", ("german", "instruct")),
    Arm("road, german whole", "road", ("german",), whole=True),
    Arm("road, instruct whole", "road", ("instruct",), whole=True),
    Arm("road, product of wholes", "product", ("german", "instruct")),
    Arm("road, 3 subspaces", "road", ("german", "instruct", "arithmetic")),
    Arm("road, 4 subspaces", "road", ("german", "instruct", "arithmetic", "sentiment")),
)


@dataclass(frozen=True)
class TrainedArm:
    """How an arm's tasks act, how many parameters they have, and the losses of training; a product has none."""

    acting: Acting
    trainable: int
    losses: Sequence[float] = ()


def run_composition(
    settings: CompositionSettings,
    folder: Path,
    *,
    data: Path | None,
    seed: int = 0,
    budget: float | None = None,
    arms: Sequence[Arm] = ARMS,
    progress: Callable[[str], None] = log.info,
) -> Ledger:
    """Train and measure every arm that the ledger does not hold yet; rows go to `folder`/ledger.jsonl.

    data     the folder of `read_rows`
    budget   processor minutes of this process; an arm is left for the next call if the finished ones show that it would
             not fit
    """
    ledger = Ledger(folder / "ledger.jsonl")
    arms = [arm for arm in arms if set(arm.tasks) <= set(TASK_ROWS[settings.scale])]
    pending = [arm for arm in arms if ledger.find(composition_setup(settings, arm), seed=seed) is None]
    if not pending:
        progress("every arm is in the ledger")
        return ledger
    tasks = dict.fromkeys(task for arm in arms for task in arm.tasks)
    check_rows(data, *(name for task in tasks for name in TASK_ROWS[settings.scale][task]))
    runner = _ArmRunner(settings, folder, data, tasks, seed, progress)
    spent: list[tuple[float, int]] = []  # (processor seconds, tasks) of the arms trained in this call
    for arm in pending:
        expected = max((seconds / count for seconds, count in spent), default=0.0) * len(arm.tasks)
        if budget is not None and cpu_seconds() + expected > 60 * budget:
            progress(f"{arm.name}: left out, {expected:.0f} s would exceed the budget of {budget:g} minutes")
            continue
        start, clock = cpu_seconds(), time.perf_counter()
        metrics = runner.measure(arm)
        seconds = cpu_seconds() - start
        ledger.append(composition_setup(settings, arm), seed=seed, metrics=metrics, seconds=seconds)
        if arm.method != "product":
            spent.append((seconds, len(arm.tasks)))
        progress(f"{arm.name}: {seconds:.0f} s of processor time, {time.perf_counter() - clock:.0f} s passed")
    return ledger


def composition_setup(settings: CompositionSettings, arm: Arm) -> dict[str, Any]:
    """What identifies a run in the ledger, beside its seed."""
    return {
        "experiment": "composition",
        **dataclasses.asdict(settings),
        "arm": dataclasses.asdict(arm) | {"tasks": list(arm.tasks)},
    }


class _ArmRunner:
    """Trains and measures arms on one base model; what the base alone does is measured once for all of them."""

    def __init__(
        self,
        settings: CompositionSettings,
        folder: Path,
        data: Path | None,
        tasks: Iterable[str],
        seed: int,
        progress: Callable[[str], None],
    ):
        self.settings, self.folder, self.seed, self.progress = settings, folder, seed, progress
        self.language_of = _language_classifier()  # first, so that what is not installed stops a run before it trains
        self.model: Any = models.load_causal(settings.model, device=models.best_device())
        self.tokenizer = models.load_tokenizer(settings.model)
        self.rows = {
            task: load_task(
                task, data, self.tokenizer, scale=settings.scale, model=settings.model, rows=settings.rows,
                held_out=settings.held_out, max_length=settings.max_length, seed=seed,
            )
            for task in tasks
        }  # fmt: skip
        self.width = hidden_size(self.model)
        self.site = site(self.model, (len(blocks(self.model)) // 2 if settings.layer is None else settings.layer) - 1)
        self._base_losses: dict[str, float] = {}
        self._base_answers: list[dict[str, str]] = []

    def measure(self, arm: Arm) -> dict[str, Any]:
        """Train the arm; → its metrics under each condition: the base, each task alone, all tasks."""
        torch.manual_seed(self.seed)
        if arm.method == "product":
            trained = self._product(arm)
        elif arm.method == "loreft":
            trained = self._train_loreft(arm)
        else:
            trained = self._train_road(arm)
        conditions: dict[str, Sequence[str]] = {"base": (), **{task: (task,) for task in arm.tasks}}
        if len(arm.tasks) > 1:
            conditions["+".join(arm.tasks)] = arm.tasks
        losses = trained.losses
        return {
            "trainable": trained.trainable,
            "train_loss": {"first": _mean(losses[:10]), "last": _mean(losses[-10:])} if losses else None,
            "held_out_loss": {
                condition: {task: self._held_out_loss(task, trained.acting, active) for task in arm.tasks}
                for condition, active in conditions.items()
            },
            "answers": {condition: self._answers(trained.acting, active) for condition, active in conditions.items()},
        }

    def _product(self, arm: Arm) -> TrainedArm:
        """The whole interventions of other arms, one after the other."""
        wholes = {}
        for task in arm.tasks:
            path = self._kept(f"road, {task} whole")
            if not path.is_dir():
                raise RecipeError(f"{arm.name} needs the arm 'road, {task} whole', which has not run; start over")
            wholes[task] = Intervention.load(path)
        return TrainedArm(acting_product(self.model, wholes), len(wholes) * 2 * (self.width // 2))

    def _train_loreft(self, arm: Arm) -> TrainedArm:
        share = self.settings.rank // len(arm.tasks)
        edit = LoreftEdit(self.width, [share] * len(arm.tasks)).to(self.model.device)
        rows, options = self._training_rows(arm), self._options(arm)
        losses = train_edits(self.model, {(self.site, LAST): edit}, rows, tasks=arm.tasks, **options)
        acting = acting_edit(self.model, self.site, edit.requires_grad_(False), arm.tasks, LAST)
        return TrainedArm(acting, sum(parameter.numel() for parameter in edit.parameters()), losses)

    def _train_road(self, arm: Arm) -> TrainedArm:
        split = Subspace.split(self.width, len(arm.tasks), group_size=self.settings.group_size)
        subspaces = dict(zip(arm.tasks, split, strict=True))
        rows, options = self._training_rows(arm), self._options(arm)
        learnt = train(self.model, rows, subspaces=subspaces, sites=[self.site], positions=LAST, **options)
        learnt.intervention.save(self._kept(arm.name))
        trainable = sum(2 * len(subspace) for subspace in subspaces.values())
        return TrainedArm(acting_subspaces(self.model, learnt.intervention), trainable, learnt.losses)

    def _training_rows(self, arm: Arm) -> list[TaskRow]:
        return [row for task in arm.tasks for row in self.rows[task][0]]

    def _options(self, arm: Arm) -> dict[str, Any]:
        def report(step: int, steps: int, loss: float) -> None:
            if step % 20 == 0:
                self.progress(f"{arm.name}: step {step}/{steps}, loss {loss:.3f}")

        return {
            "epochs": self.settings.epochs,
            "batch_size": self.settings.batch_size,
            "learning_rate": self.settings.learning_rate,
            "seed": self.seed,
            "progress": report,
        }

    def _kept(self, name: str) -> Path:
        """Where an arm's intervention lies."""
        return self.folder / "interventions" / name.replace(", ", "-").replace(" ", "-")

    def _held_out_loss(self, task: str, acting: Acting, active: Sequence[str]) -> float:
        """Mean over the task's held-out rows of the mean loss (nats a token) of the answer."""
        if active:
            return _mean_loss(self.model, self.rows[task][1], acting, active)
        if task not in self._base_losses:
            self._base_losses[task] = _mean_loss(self.model, self.rows[task][1], acting, ())
        return self._base_losses[task]

    def _answers(self, acting: Acting, active: Sequence[str]) -> list[dict[str, str]]:
        """Greedy answers to `QUESTIONS` (no 5-gram twice, repetition penalty 1.1), each with its language."""
        if not active and self._base_answers:
            return self._base_answers
        texts = [TEMPLATE.format(question) for question in QUESTIONS]
        options: dict[str, Any] = {"no_repeat_ngram_size": 5, "repetition_penalty": 1.1}
        with acting(active, len(texts), None):
            answers = answer_batch(self.model, self.tokenizer, texts, new_tokens=self.settings.new_tokens, **options)
        found = [
            {"question": question, "answer": answer, "language": self.language_of(answer)}
            for question, answer in zip(QUESTIONS, answers, strict=True)
        ]
        if not active:
            self._base_answers = found
        return found


@torch.no_grad()
def _mean_loss(model: Any, rows: Sequence[TaskRow], acting: Acting, active: Sequence[str]) -> float:
    losses = []
    for at in range(0, len(rows), 8):
        part = rows[at : at + 8]
        with acting(active, len(part), [row.num_prompt for row in part]):
            losses += answer_losses(model, part).tolist()
    return _mean(losses)


def _language_classifier() -> Callable[[str], str]:
    try:
        py3langid: Any = import_module("py3langid")
    except ImportError as error:
        raise RecipeError("the language of answers needs py3langid: pip install 'roadkit[experiments]'") from error
    return lambda text: py3langid.classify(text)[0] if text.strip() else "none"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
