"""Multimodal tuning (table 6): LoRA, RoAd4, and RoAd1 with a LoRA around it, on a LLaVA model's language part.

    run(Ledger(path), settings=Settings())                       # a tiny random LLaVA on noise: plumbing only

`rows`: pictures are tensors, so a caller brings its own processor; the small scale draws noise and nonsense.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from .. import models
from ..evaluate.multimodal import TASKS, score
from ..train.recipe import LoraOptions, Recipe
from .jobs import Job, log, run_jobs
from .ledger import Ledger
from .methods import find, num_trainable

ARMS = {
    "lora": ("lora", None),
    "road_4": ("road_4", None),
    "road_1+lora": ("road_1", LoraOptions(r=8, alpha=16, dropout=0.0)),
}
LABELS = {"lora": "LoRA r=8", "road_4": "RoAd4", "road_1+lora": "RoAd1 + LoRA r=8"}
PATCHES, SIDE = 4, 28  # a picture is four patches of 14 × 14


@dataclass(frozen=True)
class Settings:
    """A tiny random LLaVA: what passes through it is noise, and so is every score."""

    scale: str = "plumbing only: a random LLaVA"
    tokenizer: str = "smollm2"
    width: int = 64
    blocks: int = 2
    rows: int = 8
    epochs: int = 2
    new_tokens: int = 4


def run(
    ledger: Ledger, *, settings: Settings | None = None, seed: int = 0, progress: Callable[[str], None] = log.info
) -> None:
    """Train, generate and score every arm that the ledger lacks."""
    chosen = settings or Settings()

    def jobs() -> Iterator[Job]:
        for arm in ARMS:
            recipe = {"experiment": "multimodal", **dataclasses.asdict(chosen), "method": arm}
            yield Job(f"multimodal, {arm}", recipe, seed, partial(_compute, chosen, arm, seed))

    run_jobs(jobs(), ledger, progress=progress)


def tiny_llava(settings: Settings, tokenizer: Any) -> LlavaForConditionalGeneration:
    """Random weights; its picture token is one past the tokenizer's last."""
    small: dict[str, Any] = {
        "hidden_size": settings.width,
        "intermediate_size": 2 * settings.width,
        "num_hidden_layers": settings.blocks,
        "num_attention_heads": 4,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**small, image_size=SIDE, patch_size=SIDE // 2),
        text_config=LlamaConfig(**small, vocab_size=len(tokenizer) + 1, pad_token_id=0),
        image_token_index=len(tokenizer),
        image_seq_length=PATCHES,
    )
    return LlavaForConditionalGeneration(config).eval()


def _compute(settings: Settings, arm: str, seed: int) -> dict[str, Any]:
    set_seed(seed)
    tokenizer = models.load_tokenizer(settings.tokenizer)
    model = tiny_llava(settings, tokenizer)
    method, lora = ARMS[arm]
    target: dict[str, Any] = {"target_modules": ("language_model",), "group_size": 16, "lora": lora}
    tuned = find(method).tune(model, Recipe(model=settings.tokenizer, data="noise", output="", **target))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=str(Path(folder)), num_train_epochs=settings.epochs, per_device_train_batch_size=4,
            learning_rate=3e-3, seed=seed, save_strategy="no", report_to="none", disable_tqdm=True,
            logging_strategy="no", use_cpu=True, remove_unused_columns=False,
        )  # fmt: skip
        trainer = Trainer(tuned, arguments, train_dataset=_noise(settings, tokenizer, seed))  # type: ignore[arg-type]
        trainer.remove_callback(PrinterCallback)
        outcome = trainer.train()
    tuned.eval()
    rows = [{"answer": answer, "answers": [answer] * 10} for answer in ("yes", "no", "A", "two dogs")]
    answers = _answers(tuned, tokenizer, settings, len(rows))
    return {
        "trainable": num_trainable(tuned),
        "train_loss": outcome.training_loss,
        "scores": {task: score(task, answers, rows)["accuracy"] for task in TASKS},
        "questions": len(rows),
    }


def _prompt(tokenizer: Any) -> list[int]:
    return [len(tokenizer)] * PATCHES + list(tokenizer("What is this?", add_special_tokens=False)["input_ids"])


def _noise(settings: Settings, tokenizer: Any, seed: int) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    prompt, answer = _prompt(tokenizer), list(tokenizer(" yes", add_special_tokens=False)["input_ids"])
    ids = torch.tensor(prompt + answer)
    labels = torch.tensor([-100] * len(prompt) + answer)
    return [
        {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": labels,
            "pixel_values": torch.randn(3, SIDE, SIDE, generator=draw),
        }
        for _ in range(settings.rows)
    ]


@torch.no_grad()
def _answers(model: Any, tokenizer: Any, settings: Settings, count: int) -> list[str]:
    ids = torch.tensor([_prompt(tokenizer)] * count)
    pictures = torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pictures, do_sample=False,
        max_new_tokens=settings.new_tokens, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return tokenizer.batch_decode(output[:, ids.shape[1] :].clamp(max=len(tokenizer) - 1), skip_special_tokens=True)
