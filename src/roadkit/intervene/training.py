"""Training interventions: a subspace for each example, so that several tasks learn at once, each in its own pairs.

    rows = encode_tasks(Recipe(model="smollm2", data="mixed.jsonl", output=""), tokenizer, column="subspace")
    learnt = train(model, rows, subspaces={"german": upper, "instruct": lower}, sites=[site(model, 15)],
                   positions="last:1", epochs=5)
    learnt.intervention.save("tasks")

A pair gets gradient from its own task's examples only. The loss is the mean over examples of each one's mean over its
answer, and no gradient is clipped: a common number of tokens or a common norm would let one task move another's pairs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..adapter import Adapter, Base
from ..errors import RecipeError
from ..kernels.gradient import rotate_trainable
from ..models import config_fingerprint
from ..rotation import num_parameters
from ..train.data.batches import pad_batch
from ..train.data.tables import Table, read_table
from ..train.data.tokens import IGNORED
from ..train.data.training_data import prepare_data
from ..train.model.borrowed import borrowed
from ..train.model.loss import answer_logits
from .hooks import ForwardPass
from .intervention import Intervention
from .positions import Positions
from .sites import check_sites, hidden_of, with_hidden
from .subspace import Subspace, check_disjoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..train.recipe import Recipe

Active = Sequence[Sequence[bool]]  # [samples, tasks]: which tasks' subspaces act on a sample
Edits = Mapping[tuple[str, Positions], nn.Module]  # site and positions → module (h [n, d], active [n, tasks]) → h


@dataclass(frozen=True)
class TaskRow:
    """One tokenised example and the task (the subspace) that it trains."""

    task: str
    input_ids: list[int]
    labels: list[int]  # IGNORED on the prompt, which bears no loss

    @property
    def num_prompt(self) -> int:
        """Tokens before the answer."""
        return next(i for i, label in enumerate(self.labels) if label != IGNORED)


@dataclass(frozen=True)
class Learnt:
    """A trained intervention, and the loss of each step in nats a token."""

    intervention: Intervention
    losses: Sequence[float]


class RotationEdit(nn.Module):
    """`z = h + Pᵀ(P R h − P h)` with a trainable R, at one site; P are the pairs of the active tasks' subspaces.

    The intervention of RoAd (arXiv 2409.00119, §3.2), trained for several tasks at once.
    """

    masks: Tensor

    def __init__(self, subspaces: Sequence[Subspace], *, variant: str = "road_1"):
        super().__init__()
        width, self.group_size, self.variant = subspaces[0].width, subspaces[0].group_size, variant
        size = num_parameters(variant, width)
        self.theta, self.alpha = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.ones(size))
        self.register_buffer("masks", torch.stack([subspace.mask for subspace in subspaces]))  # [tasks, d]

    def forward(self, h: Tensor, active: Tensor) -> Tensor:
        """h [n, d], active [n, tasks] bool: whose pairs act on each row → z [n, d]"""
        chosen = (active.unsqueeze(2) & self.masks).any(dim=1)  # [n, d]
        z = rotate_trainable(h, self.theta, self.alpha, variant=self.variant, group_size=self.group_size)
        return torch.where(chosen, z, h)


def encode_tasks(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, column: str = "subspace", table: Table | None = None
) -> list[TaskRow]:
    """Tokenise a recipe's data, or `table`; `column` names each row's task. Raises `RecipeError` as training does."""
    table = read_table(recipe.data, split=recipe.split, limit=recipe.max_examples) if table is None else table
    return [
        row
        for task, rows in table.partition(column).items()
        for row in encode_rows(recipe, tokenizer, task=task, table=rows)
    ]


def encode_rows(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, task: str = "", table: Table | None = None
) -> list[TaskRow]:
    """Tokenise a recipe's data, or `table`, as rows of one task. Raises `RecipeError` as training does."""
    encoded = prepare_data(recipe, tokenizer=tokenizer, table=table).train
    return [TaskRow(task, list(row["input_ids"]), list(row["labels"])) for row in encoded.examples]


def train(
    model: PreTrainedModel,
    rows: Sequence[TaskRow],
    *,
    subspaces: Mapping[str, Subspace],
    sites: Sequence[str],
    positions: Positions | str = "last:1",
    variant: str = "road_1",
    epochs: float = 5,
    batch_size: int = 8,
    learning_rate: float = 5e-3,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> Learnt:
    """Train one intervention in which every task owns a subspace. The model is afterwards what it was before.

    subspaces      task → its pairs; they must not overlap
    positions      the tokens of the prompt whose hidden states rotate
    epochs         passes over the rows; a fraction ends within one
    batch_size     rows a step
    learning_rate  of AdamW, falling linearly to zero
    progress       is called after each step with (steps done, steps, loss)

    Raises `AlgebraError` for subspaces that overlap, `RecipeError` for a task without one, `ModelError` for sites that the
    model lacks.
    """
    check_disjoint(subspaces)
    named = list(subspaces)
    check_sites(model, [(site, next(iter(subspaces.values())).width) for site in sites])
    where = Positions.parse(positions) if isinstance(positions, str) else positions
    edits = {site: RotationEdit(list(subspaces.values()), variant=variant).to(model.device) for site in sites}
    losses = train_edits(
        model, {(site, where): edit for site, edit in edits.items()}, rows, tasks=named, epochs=epochs,
        batch_size=batch_size, learning_rate=learning_rate, seed=seed, progress=progress,
    )  # fmt: skip
    group_size = next(iter(subspaces.values())).group_size
    parameters = {site: (edit.theta.detach().cpu(), edit.alpha.detach().cpu()) for site, edit in edits.items()}
    base = Base(getattr(model.config, "_name_or_path", ""), config_fingerprint(model.config))
    rotation = Adapter.from_parameters(parameters, variant=variant, group_size=group_size, base=base)
    return Learnt(Intervention(rotation, where, dict(subspaces)), losses)


def train_edits(
    model: PreTrainedModel,
    edits: Edits,
    rows: Sequence[TaskRow],
    *,
    tasks: Sequence[str],
    epochs: float = 5,
    batch_size: int = 8,
    at_once: int | None = None,
    learning_rate: float = 5e-3,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[float]:
    """Train any modules by AdamW without decay, the learning rate falling linearly to zero. → the loss of each step

    tasks     the order in which modules are told which tasks are active
    at_once   rows of a step that are computed at a time, if `batch_size` of them take too much memory

    Raises `RecipeError` if there are no rows, for a row of an unknown task, and for a loss that is not finite.
    """
    unknown = sorted({row.task for row in rows} - set(tasks))
    if unknown or not rows:
        raise RecipeError(f"no subspace for {unknown[0]!r}; there are {', '.join(tasks)}" if rows else "no rows")
    for _, positions in edits:
        for row in rows:
            positions.of_prompt(row.num_prompt)  # before the first step rather than in the middle
    weights = list(nn.ModuleList(edits.values()).parameters())  # of a module at several sites once
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    num_steps = max(1, math.ceil(epochs * math.ceil(len(rows) / batch_size)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_steps)
    losses: list[float] = []
    with borrowed(model):
        model.requires_grad_(False).eval()
        for batch in _batches(rows, batch_size, num_steps, seed):
            loss = 0.0
            for at in range(0, len(batch), at_once or batch_size):
                part = batch[at : at + (at_once or batch_size)]
                active = [[row.task == task for task in tasks] for row in part]
                with torch.enable_grad():
                    share = losses_of(model, edits, part, active=active).sum() / len(batch)
                    share.backward()
                loss += float(share.detach())
            if not math.isfinite(loss):
                raise RecipeError(f"the loss became {loss} at step {len(losses)}; lower learning_rate")
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss)
            if progress:
                progress(len(losses), num_steps, losses[-1])
    return losses


def losses_of(model: PreTrainedModel, edits: Edits, rows: Sequence[TaskRow], *, active: Active) -> Tensor:
    """`answer_losses` under the edits of each row's active tasks, `active` [rows, tasks]."""
    with edited(model, edits, active, num_prompt=[row.num_prompt for row in rows]):
        return answer_losses(model, rows)


def answer_losses(model: PreTrainedModel, rows: Sequence[TaskRow]) -> Tensor:
    """[rows]: each row's mean cross entropy over its answer, in nats a token."""
    batch = pad_batch([{"input_ids": row.input_ids, "labels": row.labels} for row in rows], 0)
    logits, targets = answer_logits(model, {key: value.to(model.device) for key, value in batch.items()})
    each = cross_entropy(logits, targets, reduction="none")
    counts = [sum(label != IGNORED for label in row.labels[1:]) for row in rows]
    return torch.stack([part.mean() for part in each.split(counts)])


@contextmanager
def edited(
    model: nn.Module,
    edits: Edits,
    active: Active,
    *,
    num_prompt: Sequence[int] | None = None,
) -> Iterator[nn.Module]:
    """Run each module at its site, on its positions of every sample, for the length of a block; differentiable.

    active      [samples, tasks]; samples without an active task are left alone
    num_prompt  tokens of each sample that are the prompt, if one pass holds answers too

    Modules of one site run in the order of `edits`.
    """
    current = ForwardPass(num_prompt)
    flags = torch.tensor([list(row) for row in active])

    def hook_of(edit: nn.Module, positions: Positions):
        def replace(module: nn.Module, args: tuple, output: Any) -> Any:
            h = hidden_of(output)
            pairs = [
                (sample, column)
                for sample in range(len(h))
                if any(active[sample])
                for column in current.chosen(sample, positions)
            ]
            if not pairs:
                return output
            samples, columns = torch.tensor(pairs, device=h.device).unbind(1)
            new = edit(h[samples, columns], flags.to(h.device)[samples]).to(h.dtype)
            return with_hidden(output, h.index_put((samples, columns), new))

        return replace

    handles = [model.register_forward_pre_hook(current.begin, with_kwargs=True)]
    try:
        for (name, positions), edit in edits.items():
            handles.append(model.get_submodule(name).register_forward_hook(hook_of(edit, positions)))
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _batches(rows: Sequence[TaskRow], batch_size: int, num_steps: int, seed: int) -> Iterator[list[TaskRow]]:
    """`num_steps` batches, epoch after epoch in an order that depends on the seed alone."""
    shuffle, order = random.Random(seed), []
    for _ in range(num_steps):
        if not order:
            order = shuffle.sample(range(len(rows)), len(rows))
        yield [rows[i] for i in order[:batch_size]]
        order = order[batch_size:]
