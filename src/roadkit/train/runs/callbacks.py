"""What watches a run: the guard that stops before the weights are ruined, and the reports after every step.

trainer.add_callback(StepGuard(run, trainer))
trainer.add_callback(Reporter(run))
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.utils import get_total_norm
from transformers import Trainer, TrainerCallback

from ...errors import RecipeError
from .checkpoints import last_complete, mark
from .progress import Progress, Report

if TYPE_CHECKING:
    from ...adapter import Base
    from ..recipe import Recipe

WINDOW = 20  # steps over which speed is averaged


@dataclass
class Run:
    """What the trainer and its callbacks share about one run. `extra_files` go beside the adapter when it is saved."""

    recipe: Recipe
    base: Base
    identity: Mapping[str, Any]
    progress: Progress | None = None
    extra_files: dict[str, bytes] = field(default_factory=dict)
    tokens: int = 0  # seen in training, padding not counted
    last_loss: float = math.nan


class StepGuard(TrainerCallback):
    """Stops before a step that would ruin the weights, and marks checkpoints that are complete.

    Where accelerate scales a loss of 16 bits, gradients that overflow are expected: its scaler leaves such a step out.
    """

    def __init__(self, run: Run, trainer: Trainer):
        self._run, self._trainer = run, trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs: Any) -> None:
        model: nn.Module = kwargs["model"]
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = float(get_total_norm(gradients))
        finite = math.isfinite(norm) or self._trainer.accelerator.scaler is not None
        alone = args.world_size == 1  # losses differ between processes, gradients are the same in all
        if finite and (not alone or math.isfinite(self._run.last_loss)):
            return
        good = last_complete(self._run.recipe.run_dir)
        kept = f"the last good checkpoint is {good}" if good else "no checkpoint was written yet (save_steps)"
        what = "loss" if not math.isfinite(self._run.last_loss) else "gradient"
        value = self._run.last_loss if what == "loss" else norm
        rates = [f"{group['lr']:.3g}" for group in kwargs["optimizer"].param_groups if group["params"]]
        raise RecipeError(
            f"the {what} became {value} at step {state.global_step + 1}, learning rate "
            f"{' and '.join(dict.fromkeys(rates))}; training stopped before it reached the weights, {kept}. "
            "A lower learning_rate or a longer warmup helps"
        )

    def on_save(self, args, state, control, **kwargs: Any) -> None:
        self._trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            mark(self._run.recipe.run_dir / f"checkpoint-{state.global_step}", self._run.identity)


class Reporter(TrainerCallback):
    """Turns the trainer's logs into `Report`s."""

    def __init__(self, run: Run):
        self._run = run
        self._seen: deque[tuple[float, int]] = deque(maxlen=WINDOW + 1)
        self._latest = Report(0, 0, math.nan, 0.0, 0.0, 0.0)

    def on_step_begin(self, args, state, control, **kwargs: Any) -> None:
        if not self._seen:
            self._seen.append((time.perf_counter(), self._run.tokens))

    def on_evaluate(self, args, state, control, **kwargs: Any) -> None:
        self._seen.clear()  # the time that an evaluation takes is no training time
        if self._run.progress and state.is_world_process_zero:
            found = held_out_metrics(kwargs["metrics"])
            latest = vars(self._latest) | {"step": state.global_step, "num_steps": state.max_steps, "metrics": found}
            self._run.progress(Report(**latest))

    def on_log(self, args, state, control, **kwargs: Any) -> None:
        logs: Mapping[str, float] = kwargs["logs"]
        if "loss" not in logs or not self._run.progress or not state.is_world_process_zero:
            return
        self._seen.append((time.perf_counter(), self._run.tokens))
        (start, before), (now, tokens) = self._seen[0], self._seen[-1]
        elapsed = max(now - start, 1e-9)
        left = (state.max_steps - state.global_step) * elapsed / max(len(self._seen) - 1, 1)
        self._latest = Report(
            step=state.global_step,
            num_steps=state.max_steps,
            loss=float(logs["loss"]),
            learning_rate=float(logs["learning_rate"]),
            tokens_per_second=(tokens - before) * args.world_size / elapsed,
            seconds_left=left,
        )
        self._run.progress(self._latest)


def held_out_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The trainer's `eval_…` entries that say how good the model is."""
    timing = ("runtime", "per_second", "model_preparation", "entropy", "num_tokens", "epoch")
    return {
        name.removeprefix("eval_"): float(value)
        for name, value in metrics.items()
        if name.startswith("eval_") and not any(word in name for word in timing)
    }
