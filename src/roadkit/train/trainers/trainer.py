"""TRL's and transformers' trainers, with roadkit's adapter files as checkpoints and a guard on every step.

    trainer = build_trainer(peft_model, run_state, tokenizer=tokenizer, train=rows, held_out=None, device="cpu")
    trainer.train(resume_from_checkpoint=None)

The loops, schedules, mixed precision, accumulation, evaluation and distribution are theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from trl.data_utils import pack_dataset
from trl.trainer.sft_trainer import SFTTrainer

from ...errors import RecipeError
from ..evaluation.metrics import label_metrics
from ..model.attention import attention_for
from ..model.loss import answer_loss
from ..model.targets import head_names, in_heads
from ..output.directory import write_files, write_into
from ..output.tensors import adapter_files, load_into, trainable_tensors
from ..recipe import Recipe
from .arguments import sft_arguments, training_arguments
from .callbacks import Reporter, StepGuard
from .checkpoints import last_complete
from .sampler import GroupedByLength
from .state import RunState


class _RoadkitTrainer(Trainer):
    """What both tasks add to transformers' trainer. `run_state` is filled while it trains."""

    def __init__(self, run_state: RunState, **options: Any):
        self.run_state = run_state
        super().__init__(**options)
        self.remove_callback(PrinterCallback)
        self.add_callback(StepGuard(run_state, self))
        self.add_callback(Reporter(run_state))

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch=None) -> Tensor:
        mask = inputs.get("attention_mask")
        self.run_state.tokens += int(inputs["input_ids"].numel() if mask is None else mask.sum())
        with attention_for(self._base_of(model), self.run_state.recipe, width=inputs["input_ids"].shape[1]):
            loss = super().training_step(model, inputs, num_items_in_batch)
        self.run_state.last_loss = float(loss)
        return loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        created = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        rate = self.run_state.recipe.head_learning_rate
        if rate is not None and not created:
            trained: Any = self.model if model is None else model
            heads = head_names(self._base_of(trained), self.run_state.recipe)
            _give_rate(optimizer, [value for name, value in trained.named_parameters() if in_heads(name, heads)], rate)
        return optimizer

    def _base_of(self, model: nn.Module) -> Any:
        """The base model, out of the wrappers of PEFT and accelerate."""
        inner = self.accelerator.unwrap_model(model)
        return inner.get_base_model() if isinstance(inner, PeftModel) else inner

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """An adapter directory through roadkit's store. `state_dict` is given if weights are sharded."""
        model = self.accelerator.unwrap_model(self.model)
        tensors = trainable_tensors(model, state_dict)
        files = adapter_files(tensors, model, self.run_state.base, self.run_state.recipe)
        folder = str(output_dir or self.args.output_dir)
        if folder == self.run_state.recipe.output:
            write_files(folder, files | self.run_state.extra_files)
        else:
            write_into(folder, files)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            good = last_complete(self.run_state.recipe.run_dir)
            kept = f"the last complete one is {good}" if good else "there is no earlier one"
            raise RecipeError(
                f"no checkpoint could be written at step {self.state.global_step}: {error}; {kept}"
            ) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_into(self.accelerator.unwrap_model(self.model), resume_from_checkpoint)

    def _load_best_model(self) -> None:
        load_into(self.accelerator.unwrap_model(self.model), str(self.state.best_model_checkpoint))

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        if not self.run_state.recipe.group_by_length:
            return super()._get_train_sampler(train_dataset)
        data = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(ids) for ids in data["input_ids"]]  # type: ignore[index]
        return GroupedByLength(self._train_batch_size * self.args.gradient_accumulation_steps, lengths, self.args.seed)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card: roadkit writes its own with the adapter, and the libraries' would go into every checkpoint."""

    def _send_telemetry(self) -> None:
        """Nothing is sent: TRL would report to its makers that a run began."""


class CausalTrainer(_RoadkitTrainer, SFTTrainer):
    """TRL's SFT trainer, with a cheaper loss on the CPU."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's on GPUs, which scores only the loss-bearing tokens there; on the CPU it scores all (1.6 × the step)."""
        if return_outputs or inputs["input_ids"].device.type != "cpu":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        head = self.accelerator.unwrap_model(self.model).get_output_embeddings()
        loss, count = answer_loss(model, inputs, head)
        loss = loss / torch.as_tensor(count if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return loss


class LabelTrainer(_RoadkitTrainer):
    """transformers' trainer for one label or score a sequence."""

    def __init__(self, run_state: RunState, **options: Any):
        super().__init__(run_state, **options)
        # Models take the number of items in a step, but their loss is the batch's mean: it must be divided by the batches.
        self.model_accepts_loss_kwargs = False


def build_trainer(
    model: nn.Module,
    run_state: RunState,
    *,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]] | None,
    device: str,
) -> CausalTrainer | LabelTrainer:
    """The trainer of a recipe's task.

    model              a PeftModel, or the base model itself if all of it is trained
    train, held_out    tokenised rows, as in `Encoded.examples`
    device             "cpu" or "cuda"; the trainer moves the model there
    """
    recipe = run_state.recipe
    options: dict[str, Any] = {
        "model": model,
        "train_dataset": _dataset(train, recipe, packed=recipe.packing),
        "eval_dataset": _dataset(held_out, recipe, packed=False) if held_out else None,
        "processing_class": tokenizer,
    }
    if recipe.task == "causal":
        trainer = CausalTrainer(run_state, args=sft_arguments(recipe, model, device=device), **options)
    else:
        trainer = LabelTrainer(
            run_state,
            args=training_arguments(recipe, TrainingArguments, model, device=device),
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=_metrics(recipe),
            **options,
        )
    for parameter in model.parameters():
        if parameter.requires_grad:  # PEFT copies heads in the base's 16 bits, TRL casts all there on a quantised base
            parameter.data = parameter.data.float()
    return trainer


def _give_rate(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], rate: float) -> None:
    """Move parameters to groups that differ from their old ones in the learning rate alone."""
    wanted = set(parameters)
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if parameter in wanted]
        if moved:
            group["params"] = [parameter for parameter in group["params"] if parameter not in wanted]
            optimizer.add_param_group({**group, "params": moved, "lr": rate})


def _dataset(examples: Sequence[Mapping[str, Any]], recipe: Recipe, *, packed: bool) -> Dataset:
    data = Dataset.from_list([dict(example) for example in examples])
    if not packed:
        return data
    shown = not are_progress_bars_disabled()
    disable_progress_bars()  # it is done in a moment
    try:
        return pack_dataset(data, recipe.max_length, "bfd")  # type: ignore[arg-type, return-value]
    finally:
        if shown:
            enable_progress_bars()


def _metrics(recipe: Recipe) -> Callable[[Any], dict[str, float]]:
    def compute(outcome: Any) -> dict[str, float]:
        scores = outcome.predictions[0] if isinstance(outcome.predictions, tuple) else outcome.predictions
        return label_metrics(recipe.task, scores, outcome.label_ids)

    return compute
