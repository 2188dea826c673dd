"""The composition experiment (RoAd §4.3): tasks trained into disjoint subspaces of one block, then used apart and together.

    run(Settings(rows=64), Path("results/composition"), data=Path("../shared/data"))

Every arm is one training run: RoAd with a subspace for each task (two, three, four), LoReFT of rank 8 the same way, and
whole RoAd interventions trained alone, whose product is a further arm. Measured under every condition (base, each task's
subspace, all): the held-out loss of each task, and the language of greedy answers to questions of our own.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from roadkit import models
from roadkit.errors import RecipeError
from roadkit.intervene import Intervention, Positions, Subspace, intervened, site
from roadkit.intervene.sites import blocks, hidden_size
from roadkit.intervene.training import TaskRow, answer_losses, edited, train, train_edits

from ..ledger import Ledger
from ..tuning.generation import greedy
from ..tuning.loreft import LoreftEdit
from ..tuning.tasks import FULL, SMALL, TEMPLATE, load_task
from .jobs import cpu_seconds

log = logging.getLogger("roadkit.experiments")

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
class Settings:
    """What all arms share. The defaults are the paper's where it says (5 epochs, batch 8, middle block, last token)."""

    model: str = "smollm2"
    scale: str = "small"
    layer: int | None = None  # None: the middle block, the paper's 16th of 32
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
    """One training run. `whole`: no subspaces, for the product of two."""

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
Acting = Callable[[Sequence[str], Sequence[int] | None], AbstractContextManager]  # (tasks that act, num_prompt)


def run(
    settings: Settings,
    folder: Path,
    *,
    data: Path = Path("."),
    seed: int = 0,
    budget: float | None = None,
    arms: Sequence[Arm] = ARMS,
    progress: Callable[[str], None] = log.info,
) -> Ledger:
    """Train and measure every arm that the ledger does not hold yet; rows go to `folder`/ledger.jsonl.

    budget  processor minutes of this process; an arm that the finished ones show not to fit is left for the next call
    """
    ledger = Ledger(folder / "ledger.jsonl")
    sources = SMALL if settings.scale == "small" else FULL
    arms = [arm for arm in arms if set(arm.tasks) <= set(sources)]
    pending = [arm for arm in arms if ledger.find(recipe_of(settings, arm), seed=seed) is None]
    if not pending:
        progress("every arm is in the ledger")
        return ledger
    model = models.load_causal(settings.model, device=models.best_device())
    tokenizer = models.load_tokenizer(settings.model)
    names = dict.fromkeys(task for arm in arms for task in arm.tasks)
    rows = {
        name: load_task(
            name, sources[name], data, tokenizer, model=settings.model, rows=settings.rows, seed=seed,
            held_out=settings.held_out, max_length=settings.max_length,
        )
        for name in names
    }  # fmt: skip
    plain: dict[str, Any] = {}  # what the base model does is the same for every arm
    spent: list[tuple[float, int]] = []  # (processor seconds, tasks) of the arms trained in this call
    for arm in pending:
        expected = max((seconds / tasks for seconds, tasks in spent), default=0.0) * len(arm.tasks)
        if budget is not None and cpu_seconds() + expected > 60 * budget:
            progress(f"{arm.name}: left out, {expected:.0f} s would exceed the budget of {budget:g} minutes")
            continue
        start, clock = cpu_seconds(), time.perf_counter()
        metrics = _run_arm(arm, settings, folder, model, tokenizer, rows, seed, plain, progress)
        seconds = cpu_seconds() - start
        ledger.append(recipe_of(settings, arm), seed=seed, metrics=metrics, seconds=seconds)
        if arm.method != "product":
            spent.append((seconds, len(arm.tasks)))
        progress(f"{arm.name}: {seconds:.0f} s of processor time, {time.perf_counter() - clock:.0f} s passed")
    return ledger


def recipe_of(settings: Settings, arm: Arm) -> dict[str, Any]:
    """What identifies a run in the ledger."""
    return {
        "experiment": "composition",
        **dataclasses.asdict(settings),
        "arm": dataclasses.asdict(arm) | {"tasks": list(arm.tasks)},
    }


def _run_arm(
    arm: Arm, settings: Settings, folder: Path, model: Any, tokenizer: Any, rows, seed: int, plain: dict, progress
) -> dict:
    layer = (len(blocks(model)) // 2 if settings.layer is None else settings.layer) - 1
    name, width = site(model, layer), hidden_size(model)
    torch.manual_seed(seed)
    losses: Sequence[float] = []
    if arm.method == "product":
        parts = []
        for task in arm.tasks:
            path = folder / "interventions" / f"road, {task} whole".replace(", ", "-").replace(" ", "-")
            if not path.is_dir():
                raise RecipeError(f"{arm.name} needs the arm 'road, {task} whole', which has not run; start over")
            parts.append(Intervention.load(path))
        acting = _acting_product(model, dict(zip(arm.tasks, parts, strict=True)))
        trainable = sum(2 * (width // 2) for _ in parts)
    else:
        training = [row for task in arm.tasks for row in rows[task][0]]
        options = {
            "epochs": settings.epochs, "batch_size": settings.batch_size,
            "learning_rate": settings.learning_rate, "seed": seed,
            "progress": lambda step, steps, loss: step % 20 or progress(f"{arm.name}: step {step}/{steps}, loss {loss:.3f}"),
        }  # fmt: skip
        if arm.method == "loreft":
            share = settings.rank // len(arm.tasks)
            edit = LoreftEdit(width, [share] * len(arm.tasks)).to(model.device)
            losses = train_edits(model, {(name, LAST): edit}, training, tasks=arm.tasks, **options)
            acting = _acting_edit(model, name, edit.requires_grad_(False), arm.tasks)
            trainable = sum(parameter.numel() for parameter in edit.parameters())
        else:
            split = Subspace.split(width, len(arm.tasks), group_size=settings.group_size)
            subspaces = dict(zip(arm.tasks, split, strict=True))
            learnt = train(model, training, subspaces=subspaces, sites=[name], positions=LAST, **options)
            losses, tasks = learnt.losses, learnt.intervention
            tasks.save(folder / "interventions" / arm.name.replace(", ", "-").replace(" ", "-"))
            acting = _acting_select(model, tasks)
            trainable = sum(2 * len(subspace) for subspace in subspaces.values())
    conditions = {"base": (), **{task: (task,) for task in arm.tasks}}
    if len(arm.tasks) > 1:
        conditions["+".join(arm.tasks)] = arm.tasks
    held = {task: rows[task][1] for task in arm.tasks}

    def loss(task: str, active: Sequence[str]) -> float:
        if active:
            return _held_out_loss(model, held[task], acting, active)
        if task not in plain:
            plain[task] = _held_out_loss(model, held[task], acting, ())
        return plain[task]

    def answers(active: Sequence[str]) -> list[dict[str, str]]:
        if active:
            return _answers(model, tokenizer, acting, active, settings.new_tokens)
        if "" not in plain:
            plain[""] = _answers(model, tokenizer, acting, (), settings.new_tokens)
        return plain[""]

    return {
        "trainable": trainable,
        "train_loss": {"first": _mean(losses[:10]), "last": _mean(losses[-10:])} if losses else None,
        "held_out_loss": {
            condition: {task: loss(task, active) for task in arm.tasks} for condition, active in conditions.items()
        },
        "answers": {condition: answers(active) for condition, active in conditions.items()},
    }


def _acting_select(model: nn.Module, tasks: Intervention) -> Acting:
    return lambda active, num_prompt: intervened(
        model, tasks.select(*active) if active else [None] * _samples(num_prompt), num_prompt=num_prompt
    )


def _acting_product(model: nn.Module, wholes: Mapping[str, Intervention]) -> Acting:
    def context(active: Sequence[str], num_prompt: Sequence[int] | None) -> AbstractContextManager:
        product: Intervention | None = None
        for task in active:
            whole = dataclasses.replace(wholes[task], subspaces={})
            product = whole if product is None else product.then(whole)
        return intervened(model, product if product else [None] * _samples(num_prompt), num_prompt=num_prompt)

    return context


def _acting_edit(model: nn.Module, name: str, edit: nn.Module, tasks: Sequence[str]) -> Acting:
    def context(active: Sequence[str], num_prompt: Sequence[int] | None) -> AbstractContextManager:
        flags = [[task in active for task in tasks]] * _samples(num_prompt)
        return edited(model, {(name, LAST): edit}, flags, num_prompt=num_prompt)

    return context


def _samples(num_prompt: Sequence[int] | None) -> int:
    return len(QUESTIONS) if num_prompt is None else len(num_prompt)


@torch.no_grad()
def _held_out_loss(model: Any, rows: Sequence[TaskRow], acting: Acting, active: Sequence[str]) -> float:
    """Mean over rows of the mean loss (nats a token) of the answer."""
    losses = []
    for at in range(0, len(rows), 8):
        part = rows[at : at + 8]
        with acting(active, [row.num_prompt for row in part]):
            losses += answer_losses(model, part).tolist()
    return _mean(losses)


def _answers(
    model: Any, tokenizer: Any, acting: Acting, active: Sequence[str], new_tokens: int
) -> list[dict[str, str]]:
    """Greedy answers to `QUESTIONS` (no 5-gram twice, repetition penalty 1.1), each with its language."""
    classify = _language()
    texts = [TEMPLATE.format(question) for question in QUESTIONS]
    with acting(active, None):
        answers = greedy(model, tokenizer, texts, new_tokens=new_tokens, no_repeat_ngram_size=5, repetition_penalty=1.1)
    return [
        {"question": question, "answer": answer, "language": classify(answer)}
        for question, answer in zip(QUESTIONS, answers, strict=True)
    ]


def _language() -> Callable[[str], str]:
    try:
        py3langid: Any = import_module("py3langid")
    except ImportError as error:
        raise RecipeError("the language of answers needs py3langid: pip install 'roadkit[experiments]'") from error
    return lambda text: py3langid.classify(text)[0] if text.strip() else "none"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
