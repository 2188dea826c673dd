"""Many adapters trained on one frozen base: each pass carries rows of several, each row rotated by its own.

result = train_jointly([prepare_data(recipe), …], None, progress=None, start=time.perf_counter())
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from ... import models
from ...adapter import Base
from ...errors import RecipeError
from ...kernels.gradient import rotate_blocks
from ..data.batches import pad_batch
from ..data.training_data import TrainingData
from ..model.attention import attention_for
from ..model.base import load_base, padding, training_device
from ..model.borrowed import borrowed
from ..model.loss import answer_logits
from ..model.targets import target_layers
from ..output.result import ManyResult, TrainResult
from ..progress import Progress, Report
from ..recipe import Recipe
from .member import Member
from .passes import micro_batches, passes

Blocks = list[tuple[Member, int]]  # whose rows, and how many; in the order of the batch


def train_jointly(
    parts: Sequence[TrainingData], model: PreTrainedModel | None, *, progress: Progress | None, start: float
) -> ManyResult:
    """Train an adapter on each part and write it when it is done. `model`: already loaded; `start`: when the run began.

    The parts' recipes differ in the output alone.
    """
    base_model = model if model is not None else load_base(parts[0], device=training_device(None))
    with borrowed(base_model), padding(parts[0].tokenizer, base_model):
        return _train(parts, base_model, progress=progress, start=start)


def _train(
    parts: Sequence[TrainingData], base_model: PreTrainedModel, *, progress: Progress | None, start: float
) -> ManyResult:
    recipe = parts[0].recipe
    base = Base(models.canonical_name(recipe.model), models.config_fingerprint(base_model.config))
    layers = target_layers(base_model, recipe)
    base_model.requires_grad_(False).train()
    if recipe.gradient_checkpointing:
        base_model.gradient_checkpointing_enable({"use_reentrant": False})
    active = [Member.begin(data, layers, base_model.device) for data in parts]
    num_steps = max(member.num_steps for member in active)
    done: dict[str, TrainResult] = {}
    failed: dict[str, str] = {}
    step, tokens = 0, 0
    first_step = time.perf_counter()
    with _rotated_rows(layers, recipe) as blocks:
        while active:
            step += 1
            before = sum(member.tokens for member in active)
            _add_gradients(active, base_model, blocks, recipe)
            tokens += sum(member.tokens for member in active) - before
            losses = [member.losses[-1] for member in active]
            rate = max(member.optimizer.param_groups[0]["lr"] for member in active)
            for member in active:
                if problem := member.step():
                    failed[member.name] = problem
                elif member.is_done:
                    done[member.name] = member.finish(base, seconds=time.perf_counter() - start)
            active = [member for member in active if member.name not in done and member.name not in failed]
            if progress:
                elapsed = time.perf_counter() - first_step
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


@contextmanager
def _rotated_rows(layers: Mapping[str, nn.Module], recipe: Recipe) -> Iterator[Blocks]:
    """Inside, each row of a pass is rotated by its own adapter. Fill the yielded list with the pass's rows before it."""
    blocks: Blocks = []

    def hook_of(name: str):
        def rotate(module: nn.Module, args: tuple[Any, ...], h: Tensor) -> Tensor:
            # Some models join rows and tokens in one dimension: then every row of the batch is several rows of h.
            per_row, rest = divmod(len(h), sum(rows for _, rows in blocks))
            assert not rest, f"{name}: {len(h)} rows come out, {blocks} went in"
            own = [(rows * per_row, *member.parameters[name]) for member, rows in blocks]
            return rotate_blocks(h, own, variant=recipe.variant, group_size=recipe.group_size)

        return rotate

    handles = [layer.register_forward_hook(hook_of(name)) for name, layer in layers.items()]
    try:
        yield blocks
    finally:
        for handle in handles:
            handle.remove()


def _add_gradients(active: Sequence[Member], base_model: PreTrainedModel, blocks: Blocks, recipe: Recipe) -> None:
    """Forward and backward of every adapter's next rows, in as few passes as their width allows."""
    batches = [batch for member in active for batch in micro_batches(member, next(member.batches))]
    for member in active:
        member.losses.append(0.0)
    for group in passes(batches):
        blocks[:] = [(batch.member, len(batch.rows)) for batch in group]
        pad_token_id = group[0].member.data.tokenizer.pad_token_id
        padded = pad_batch([row for batch in group for row in batch.rows], pad_token_id)  # type: ignore[arg-type]
        inputs = {key: value.to(base_model.device) for key, value in padded.items()}
        with attention_for(base_model, recipe, width=inputs["input_ids"].shape[1]):
            with torch.autocast(base_model.device.type, torch.bfloat16, enabled=recipe.bf16):
                logits, targets = answer_logits(base_model, inputs)
            losses = cross_entropy(logits, targets, reduction="none")  # [loss-bearing tokens], row after row
            total = losses.new_zeros(())
            for batch, own in zip(group, losses.split([batch.num_targets for batch in group]), strict=True):
                loss = own.sum() / batch.step_targets
                total = total + loss
                batch.member.losses[-1] += float(loss.detach())
                batch.member.tokens += sum(len(row["input_ids"]) for row in batch.rows)
            total.backward()
