"""TRL's and transformers' trainers, with roadkit's adapter files as checkpoints and a guard on every step.

    trainer = build_trainer(peft_model, recipe, parts, run=run)
    trainer.train(resume_from_checkpoint=None)

The loops, schedules, mixed precision, accumulation, evaluation and distribution are theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
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
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl.data_utils import pack_dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ...errors import RecipeError
from ..model.attention import attention_for
from ..model.loss import answer_loss
from ..model.tuned import head_names, inside
from ..output.directory import adapter_files, load_into, trainable_tensors, write_files, write_into
from ..output.metrics import classification_metrics, regression_metrics
from .callbacks import Reporter, Run, StepGuard
from .checkpoints import last_complete

if TYPE_CHECKING:
    from ..recipe import Recipe

MAX_LEAK = 1e-3  # relative; the same shapes are computed twice, so rows that are apart give the same numbers


class _RoadkitTrainer(Trainer):
    """What both tasks add to transformers' trainer."""

    run: Run

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch=None) -> Tensor:
        mask = inputs.get("attention_mask")
        self.run.tokens += int(inputs["input_ids"].numel() if mask is None else mask.sum())
        with attention_for(self._base_of(model), self.run.recipe, width=inputs["input_ids"].shape[1]):
            loss = super().training_step(model, inputs, num_items_in_batch)
        self.run.last_loss = float(loss)
        return loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        created = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        rate = self.run.recipe.head_learning_rate
        if rate is not None and not created:
            tuned: Any = self.model if model is None else model
            heads = head_names(self._base_of(tuned), self.run.recipe)
            _give_rate(optimizer, [value for name, value in tuned.named_parameters() if inside(name, heads)], rate)
        return optimizer

    def _base_of(self, model: nn.Module) -> Any:
        """The model that was tuned, out of the wrappers of PEFT and accelerate."""
        tuned = self.accelerator.unwrap_model(model)
        return tuned.get_base_model() if isinstance(tuned, PeftModel) else tuned

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """An adapter directory through roadkit's store. `state_dict` is given where weights are sharded."""
        model = self.accelerator.unwrap_model(self.model)
        tensors = trainable_tensors(model, state_dict)
        files = adapter_files(tensors, model, self.run.base, self.run.recipe)
        folder = str(output_dir or self.args.output_dir)
        if folder == self.run.recipe.output:
            write_files(folder, files | self.run.extra_files)
        else:
            write_into(folder, files)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            good = last_complete(self.run.recipe.run_dir)
            kept = f"the last complete one is {good}" if good else "there is no earlier one"
            raise RecipeError(
                f"no checkpoint could be written at step {self.state.global_step}: {error}; {kept}"
            ) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_into(self.accelerator.unwrap_model(self.model), resume_from_checkpoint)

    def _load_best_model(self) -> None:
        load_into(self.accelerator.unwrap_model(self.model), str(self.state.best_model_checkpoint))

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        if not self.run.recipe.group_by_length:
            return super()._get_train_sampler(train_dataset)
        data = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(ids) for ids in data["input_ids"]]  # type: ignore[index]
        return GroupedByLength(self._train_batch_size * self.args.gradient_accumulation_steps, lengths, self.args.seed)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card is written with the adapter; the libraries' own would go into every checkpoint."""

    def _send_telemetry(self) -> None:
        """TRL reports to its makers that a run began. roadkit sends nothing."""


class GroupedByLength(LengthGroupedSampler):
    """Its order depends on seed and epoch alone, not on random numbers drawn before: a resumed run sees the same."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self):
        self.generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        return super().__iter__()


class CausalTrainer(_RoadkitTrainer, SFTTrainer):
    """TRL's SFT trainer. On the CPU the loss is computed where there is one, not at every position."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's fused head scores the loss-bearing tokens alone on GPUs, but all tokens on the CPU: 1.6 × the step."""
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

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        # Models take the number of items in a step, but their loss is the batch's mean: it must be divided by the batches.
        self.model_accepts_loss_kwargs = False


def build_trainer(
    model: nn.Module,
    run: Run,
    *,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]] | None,
    use_cpu: bool,
) -> _RoadkitTrainer:
    """The trainer of a recipe's task. `model` is a PeftModel; `train` and `held_out` are tokenised rows."""
    recipe = run.recipe
    data = _dataset(train, recipe, packed=recipe.packing)
    evaluation = _dataset(held_out, recipe, packed=False) if held_out else None
    if recipe.task == "causal":
        trainer = CausalTrainer(
            model=model,  # type: ignore[arg-type]
            args=_arguments(recipe, SFTConfig, use_cpu, model, **_sft_options(recipe)),  # type: ignore[arg-type]
            train_dataset=data,
            eval_dataset=evaluation,
            processing_class=tokenizer,
        )
    else:
        trainer = LabelTrainer(
            model=model,
            args=_arguments(recipe, TrainingArguments, use_cpu, model),
            data_collator=DataCollatorWithPadding(tokenizer),
            train_dataset=data,
            eval_dataset=evaluation,
            processing_class=tokenizer,
            compute_metrics=_metrics(recipe),
        )
    for parameter in model.parameters():
        if parameter.requires_grad:  # PEFT copies heads in the base's 16 bits, TRL casts all there on a quantised base
            parameter.data = parameter.data.float()
    trainer.run = run
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepGuard(run, trainer))
    trainer.add_callback(Reporter(run))
    return trainer


def _give_rate(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], rate: float) -> None:
    """Move parameters to groups with a learning rate of their own, and everything else as it was."""
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


@torch.no_grad()
def check_isolated(trainer: Trainer, rows: Sequence[Mapping[str, Any]]) -> None:
    """Do packed rows see each other? Changes one row and compares what the model says about the next.

    Raises `RecipeError` for a model whose attention does not keep them apart (it needs positions to mean boundaries).
    """
    first, second = (list(row["input_ids"])[:32] for row in (rows[0], rows[-1]))
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.eval()
    outputs = []
    for before in (first, first[::-1]):
        packed = {"input_ids": before + second, "labels": before + second, "seq_lengths": [len(before), len(second)]}
        batch = trainer._prepare_inputs(trainer.data_collator([packed]))  # type: ignore[arg-type]
        rest = {key: value for key, value in batch.items() if key != "labels"}
        with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
            outputs.append(model(**rest, use_cache=False).logits[0, len(before) :].float())
    change = float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max())
    if first != first[::-1] and change > MAX_LEAK:
        implementation = getattr(model.config, "_attn_implementation", "unknown")
        raise RecipeError(
            f"packing: rows of one sequence see each other in this model ({type(model.get_base_model()).__name__}, "
            f"attention {implementation}): changing one row moved the next one's outputs by {change:.1%}. "
            "Set packing: false; group_by_length: true saves padding too"
        )


def _sft_options(recipe: Recipe) -> dict[str, Any]:
    return {
        "dataset_kwargs": {"skip_prepare_dataset": True},  # rows come tokenised, cut, marked and packed
        "max_length": recipe.max_length if recipe.packing else None,
        "packing": recipe.packing,
        "eval_packing": False,
        "prediction_loss_only": True,
    }


def one_device(arguments: TrainingArguments) -> TrainingArguments:
    """A process trains on one device: where several GPUs are in sight, not torch's DataParallel, which TRL refuses and which
    would multiply the batch size."""
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _arguments(
    recipe: Recipe, kind: type[TrainingArguments], use_cpu: bool, model: Any, **more: Any
) -> TrainingArguments:
    saves = recipe.save_steps or (recipe.eval_steps if recipe.best else None)
    arguments = kind(
        output_dir=str(recipe.run_dir),
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.eval_batch_size or recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule if recipe.schedule != "constant" else "constant_with_warmup",
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        seed=recipe.seed,
        data_seed=recipe.seed,
        bf16=recipe.bf16,
        use_cpu=use_cpu,
        gradient_checkpointing=recipe.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if recipe.gradient_checkpointing else None,
        eval_strategy="steps" if recipe.eval_steps else "no",
        eval_steps=recipe.eval_steps,
        save_strategy="steps" if saves else "no",
        save_steps=saves or 500,
        save_total_limit=None if recipe.keep_checkpoints else 2,  # a kill while one is written leaves the other
        load_best_model_at_end=recipe.best is not None,
        metric_for_best_model=recipe.best,
        greater_is_better=recipe.best not in (None, "loss"),
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=["tensorboard"] if recipe.tensorboard else "none",
        disable_tqdm=True,
        dataloader_pin_memory=not use_cpu,
        remove_unused_columns=False,
        label_names=["labels"],
        ddp_find_unused_parameters=hasattr(model.config, "vision_config"),  # rows of text leave a vision tower unused
        **more,
    )
    return one_device(arguments)


def _metrics(recipe: Recipe) -> Callable[[Any], dict[str, float]]:
    def compute(outcome: Any) -> dict[str, float]:
        scores = outcome.predictions[0] if isinstance(outcome.predictions, tuple) else outcome.predictions
        if recipe.task == "regression":
            return regression_metrics(np.squeeze(scores, -1), outcome.label_ids)
        return classification_metrics(scores.argmax(-1), outcome.label_ids)

    return compute
