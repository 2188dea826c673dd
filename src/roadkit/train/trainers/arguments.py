"""A recipe in transformers' words: the arguments of its trainer.

arguments = training_arguments(recipe, TrainingArguments, model, device="cpu")
arguments = sft_arguments(recipe, model, device="cuda")      # those of TRL's trainer for text
"""

from __future__ import annotations

from typing import Any, TypeVar

from transformers import TrainingArguments
from trl.trainer.sft_config import SFTConfig

from ..recipe import Recipe
from .schedule import SCHEDULERS

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def sft_arguments(recipe: Recipe, model: Any, *, device: str) -> SFTConfig:
    """For TRL's trainer, which is given rows that are tokenised, cut, marked and packed."""
    return training_arguments(
        recipe,
        SFTConfig,
        model,
        device=device,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=recipe.max_length if recipe.packing else None,
        packing=recipe.packing,
        eval_packing=False,
        prediction_loss_only=True,
    )


def one_device(arguments: Arguments) -> Arguments:
    """Let the process train on one device, however many GPUs it sees.

    On several, transformers would use torch's DataParallel, which TRL refuses and which multiplies the batch size.
    """
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def training_arguments(recipe: Recipe, kind: type[Arguments], model: Any, *, device: str, **more: Any) -> Arguments:
    """The recipe as arguments of `kind`, for a model that trains on `device`; `more` are the kind's own."""
    saves = recipe.save_steps or (recipe.eval_steps if recipe.best else None)
    arguments = kind(
        output_dir=str(recipe.run_dir),
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.eval_batch_size or recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=SCHEDULERS[recipe.schedule],
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        seed=recipe.seed,
        data_seed=recipe.seed,
        bf16=recipe.bf16,
        use_cpu=device == "cpu",
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
        dataloader_pin_memory=device != "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        ddp_find_unused_parameters=hasattr(model.config, "vision_config"),  # rows of text leave a vision tower unused
        **more,
    )
    return one_device(arguments)
