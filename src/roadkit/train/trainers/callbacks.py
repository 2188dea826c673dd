"""What watches a run: the guard that stops it before the weights are ruined, and the reports after every step.

trainer.add_callback(StepGuard(run_state, trainer))
trainer.add_callback(Reporter(run_state))
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.utils import get_total_norm
from transformers import Trainer, TrainerCallback

from ...errors import RecipeError
from ..progress import Report
from .checkpoints import last_complete, mark_complete
from .state import RunState

WINDOW = 20  # steps over which speed is averaged


class StepGuard(TrainerCallback):
    """Stops before a step that would ruin the weights, and marks checkpoints that are complete.

    If accelerate scales the loss of a 16-bit run, gradients that overflow are expected: its scaler leaves such a step out.
    """

    def __init__(self, run_state: RunState, trainer: Trainer):
        self._run, self._trainer = run_state, trainer

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
        what, value = ("gradient", norm) if math.isfinite(self._run.last_loss) else ("loss", self._run.last_loss)
        rates = [f"{group['lr']:.3g}" for group in kwargs["optimizer"].param_groups if group["params"]]
        raise RecipeError(
            f"the {what} became {value} at step {state.global_step + 1}, learning rate "
            f"{' and '.join(dict.fromkeys(rates))}; training stopped before it reached the weights, {kept}. "
            "A lower learning_rate or a longer warmup helps"
        )

    def on_save(self, args, state, control, **kwargs: Any) -> None:
        self._trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            mark_complete(self._run.recipe.run_dir / f"checkpoint-{state.global_step}", self._run.identity)


class Reporter(TrainerCallback):
    """Turns the trainer's logs into `Report`s."""

    def __init__(self, run_state: RunState):
        self._run = run_state
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
