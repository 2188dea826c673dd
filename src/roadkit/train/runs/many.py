"""Many adapters in one run: a data set with a column `adapter`, one frozen base, an adapter out for every name in it.

    result = run_many(Recipe(model="smollm2", data="customers.jsonl", output="adapters"))
    result.adapters["acme"].metrics["loss"]          # adapters/acme is a PEFT directory

Every pass of the base carries rows of many adapters, each rotated by its own. An adapter's loss is the mean over its
own tokens; its optimiser, its schedule and the order of its rows are its own. So it ends where a run of its own would,
whatever the others do; and one whose loss stops being a number leaves without the others.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ... import models
from ...adapter import Base
from ...errors import RecipeError
from ...kernels.gradient import rotate_blocks
from ..data.prepared import Prepared, load_base, padding, prepare, use_cpu
from ..data.tables import read_table
from ..data.tokens import IGNORED
from ..model.attention import attention_for
from ..model.loss import answer_logits, pad_batch
from ..model.tuned import borrowed, target_layers
from ..output.directory import check_output
from ..recipe import Recipe
from .checkpoints import num_processes
from .member import Student, enrol
from .progress import Progress, Report
from .session import TrainResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_TOKENS = 4096  # of one pass (or one row), padding included; a step with more takes several, to the same gradients
ONE_BY_ONE = (  # keys of a recipe that need a run for each adapter
    "lora", "modules_to_save", "head_learning_rate", "packing", "eval_data", "eval_fraction", "best", "save_steps",
    "resume", "tensorboard",
)  # fmt: skip
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]*")


@dataclass(frozen=True)
class ManyResult:
    """What a run with many adapters made: a `TrainResult` for each name, and why the missing ones are missing.

    steps of the longest adapter; seconds of this call; tokens of all adapters, padding not counted
    """

    adapters: Mapping[str, TrainResult]
    failed: Mapping[str, str]
    steps: int
    seconds: float
    tokens: int


def run_many(
    recipe: Recipe,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Progress | None = None,
) -> ManyResult:
    """Train an adapter for every name in the data's `adapter` column (`columns: {adapter: customer}` renames it).

    Each step gives every adapter that is not done `batch_size` × `gradient_accumulation` rows of its own. Adapters go to
    `recipe.output`/name.
    model, tokenizer    already loaded (both or none); afterwards the model is as it was before

    Raises `RecipeError` as `run` does, for a name that is none, for options that need a run each, and where no adapter
    came through.
    """
    start = time.perf_counter()
    _check(recipe, model, tokenizer)
    tokenizer = tokenizer or models.load_tokenizer(recipe.model)
    prepared = _prepare_each(recipe, model, tokenizer)
    base_model = model if model is not None else load_base(prepared[0])
    if not use_cpu(model):
        nn.Module.cuda(base_model)
    with borrowed(base_model), padding(tokenizer, base_model):
        return _train(prepared, base_model, progress=progress, start=start)


def _check(recipe: Recipe, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase | None) -> None:
    if (model is None) != (tokenizer is None):
        raise RecipeError("give model and tokenizer together, or neither")
    defaults = Recipe(model="", data="", output="")
    asked = [key for key in ONE_BY_ONE if getattr(recipe, key) != getattr(defaults, key)]
    if asked or recipe.task != "causal":
        what = ", ".join(asked) or f"task {recipe.task}"
        raise RecipeError(f"many adapters in one run: {what} needs a run for each adapter")
    if num_processes() > 1:
        raise RecipeError("many adapters in one run: one process trains them, several are not supported")


def _prepare_each(recipe: Recipe, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase) -> list[Prepared]:
    """The table cut by adapter, each part prepared as for a run of its own."""
    table = read_table(recipe.data, split=recipe.split, limit=recipe.max_examples)
    column = recipe.columns.get("adapter", "adapter")
    parts: dict[str, list[int]] = {}
    for i in range(len(table)):
        name = table.text(i, column)
        if not NAME.fullmatch(name):
            raise RecipeError(f"{table.where(i)}, column {column!r}: {name[:60]!r} is no adapter's name")
        parts.setdefault(name, []).append(i)
    prepared = []
    for name, indices in parts.items():
        own = Recipe(**recipe.model_dump() | {"output": str(Path(recipe.output) / name)})
        check_output(own.output, own)
        prepared.append(prepare(own, model=model, tokenizer=tokenizer, table=table.take(indices)))
    return prepared


def _train(
    prepared: Sequence[Prepared], base_model: PreTrainedModel, *, progress: Progress | None, start: float
) -> ManyResult:
    recipe = prepared[0].recipe
    base = Base(models.canonical_name(recipe.model), models.config_fingerprint(base_model.config))
    layers = target_layers(base_model, recipe)
    base_model.requires_grad_(False).train()
    if recipe.gradient_checkpointing:
        base_model.gradient_checkpointing_enable({"use_reentrant": False})
    active = [enrol(part, layers, base_model.device) for part in prepared]
    num_steps = max(student.num_steps for student in active)
    done: dict[str, TrainResult] = {}
    failed: dict[str, str] = {}
    step, tokens = 0, 0
    clock = time.perf_counter()
    with _rotated(layers, recipe) as blocks:
        while active:
            step += 1
            before = sum(student.tokens for student in active)
            _gradients(active, base_model, blocks, recipe)
            tokens += sum(student.tokens for student in active) - before
            losses = [student.losses[-1] for student in active]
            rate = max(student.optimizer.param_groups[0]["lr"] for student in active)
            for student in list(active):
                problem = student.advance()
                if problem:
                    failed[student.name] = problem
                elif len(student.losses) == student.num_steps:
                    done[student.name] = student.graduate(base, time.perf_counter() - start)
                if problem or student.name in done:
                    active.remove(student)
            if progress:
                elapsed = time.perf_counter() - clock
                progress(
                    Report(
                        step=step,
                        num_steps=num_steps,
                        loss=sum(losses) / len(losses),  # of the adapters that took this step
                        learning_rate=rate,
                        tokens_per_second=tokens / elapsed,
                        seconds_left=elapsed / step * (num_steps - step),
                    )
                )
    if not done:
        raise RecipeError("no adapter came through: " + "; ".join(f"{name}: {why}" for name, why in failed.items()))
    return ManyResult(done, failed, step, round(time.perf_counter() - start, 3), tokens)


@dataclass(frozen=True)
class Piece:
    """Rows of one adapter that go through the base together: `bearing` of the step's `total` tokens that bear its loss."""

    student: Student
    rows: list[Mapping[str, Any]]
    bearing: int
    total: int


Blocks = list[tuple[Student, int]]  # whose rows, and how many; in the order of the batch


@contextmanager
def _rotated(layers: Mapping[str, nn.Module], recipe: Recipe) -> Iterator[Blocks]:
    """Each row of a pass is rotated by its own adapter, as the yielded blocks say when the pass is made."""
    blocks: Blocks = []

    def hook_of(name: str):
        def rotate(module: nn.Module, args: tuple[Any, ...], h: Tensor) -> Tensor:
            per_row, rest = divmod(len(h), sum(rows for _, rows in blocks))
            assert not rest, f"{name}: {len(h)} rows come out, {blocks} went in"
            own = [(rows * per_row, *student.parameters[name]) for student, rows in blocks]  # some models join rows and
            return rotate_blocks(
                h, own, variant=recipe.variant, group_size=recipe.group_size
            )  # tokens in one dimension

        return rotate

    handles = [layer.register_forward_hook(hook_of(name)) for name, layer in layers.items()]
    try:
        yield blocks
    finally:
        for handle in handles:
            handle.remove()


def _gradients(active: Sequence[Student], base_model: PreTrainedModel, blocks: Blocks, recipe: Recipe) -> None:
    """Forward and backward of every adapter's next rows, in as few passes as `MAX_TOKENS` allows."""
    pieces: list[Piece] = []
    for student in active:
        parts = [(rows, sum(map(_bearing, rows))) for rows in _cut(next(student.batches))]
        total = sum(bearing for _, bearing in parts)
        pieces += [Piece(student, rows, bearing, total) for rows, bearing in parts]
        student.losses.append(0.0)
    for group in _passes(pieces):
        blocks[:] = [(piece.student, len(piece.rows)) for piece in group]
        rows = [row for piece in group for row in piece.rows]
        pad_token_id = group[0].student.prepared.tokenizer.pad_token_id
        batch = {key: value.to(base_model.device) for key, value in pad_batch(rows, pad_token_id).items()}  # type: ignore[arg-type]
        with attention_for(base_model, recipe, width=batch["input_ids"].shape[1]):
            with torch.autocast(base_model.device.type, torch.bfloat16, enabled=recipe.bf16):
                logits, targets = answer_logits(base_model, batch)
            losses = cross_entropy(logits, targets, reduction="none")  # [loss-bearing tokens], row after row
            at, summed = 0, losses.new_zeros(())
            for piece in group:
                loss = losses[at : at + piece.bearing].sum() / piece.total
                summed = summed + loss
                piece.student.losses[-1] += float(loss.detach())
                piece.student.tokens += sum(len(row["input_ids"]) for row in piece.rows)
                at += piece.bearing
            summed.backward()


def _bearing(row: Mapping[str, Any]) -> int:
    """Tokens that bear loss."""
    return sum(label != IGNORED for label in row["labels"][1:])


def _width(rows: Sequence[Mapping[str, Any]]) -> int:
    return max(len(row["input_ids"]) for row in rows)


def _cut(rows: list[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """An adapter's rows, each part within `MAX_TOKENS` (one row at least)."""
    part: list[Mapping[str, Any]] = []
    width = 0
    for row in rows:
        width = max(width, own := len(row["input_ids"]))
        if part and (len(part) + 1) * width > MAX_TOKENS:
            yield part
            part, width = [], own
        part.append(row)
    yield part


def _passes(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Pieces of like width together, each pass within `MAX_TOKENS` (one piece at least)."""
    group: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: _width(piece.rows)):
        if group and sum(len(each.rows) for each in [*group, piece]) * _width(piece.rows) > MAX_TOKENS:
            yield group
            group = []
        group.append(piece)
    yield group
