"""Multimodal tuning (table 6): LoRA, RoAd4, and RoAd1 with a LoRA around it, on a LLaVA model's language part.

    run(Ledger(path))                                            # a tiny random LLaVA on noise: plumbing only
    run(Ledger(path), settings=FULL, data=Path("data"))          # a real one, on pictures and questions on disk

With `data` a model trains on the rows of train.jsonl and answers those of the tasks' files (`pictures.py` says how they
look); without, noise goes through a random model.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from roadkit import models
from roadkit.errors import RecipeError, nearest
from roadkit.train.data.tables import Cells
from roadkit.train.data.tokens import IGNORED
from roadkit.train.model.base import training_device
from roadkit.train.recipe import LoraOptions, Recipe
from roadkit.train.trainers.arguments import one_device

from ..ledger import Ledger
from ..scoring.multimodal import TASKS, score
from ..tuning.methods import find, num_trainable
from ..tuning.pictures import Pictures, collate
from .jobs import Job, log, run_jobs


def _with_lora(rank: int) -> tuple[str, LoraOptions]:
    return "road_1", LoraOptions(r=rank, alpha=2 * rank, dropout=0.0)


ARMS = {
    "lora": ("lora", None),
    "lora_128": ("lora_128", None),
    "road_4": ("road_4", None),
    "road_1+lora": _with_lora(8),
    "road_1+lora_32": _with_lora(32),
}
LABELS = {"road_1+lora": "RoAd1 + LoRA r=8", "road_1+lora_32": "RoAd1 + LoRA r=32"}
PATCHES, SIDE = 4, 28  # a random picture is four patches of 14 × 14
ASKED = [
    {"answer": answer, "answers": [answer] * 10} for answer in ("yes", "no", "A", "two dogs")
]  # about each of four


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
    arms: ClassVar = ("lora", "road_4", "road_1+lora")
    batch_size: ClassVar = 4
    gradient_accumulation: ClassVar = 1
    learning_rate: ClassVar = 3e-3
    group_size: ClassVar = 16
    bf16: ClassVar = False


@dataclass(frozen=True)
class Real:
    """A LLaVA model, and pictures below a data folder. LLaVA-1.5's batch, one learning rate for all arms, and LoRAs of the
    paper's size: 4.61 % and 1.19 % of LLaMA-7B are ranks of 128 and 32 (table 6)."""

    scale: str = "full"
    model: str = "llava-hf/llava-1.5-7b-hf"
    epochs: int = 1
    batch_size: int = 16
    gradient_accumulation: int = 8
    learning_rate: float = 3e-4
    new_tokens: int = 16
    group_size: int = 2
    bf16: bool = True
    arms: ClassVar = ("lora_128", "road_4", "road_1+lora_32")


FULL = Real()


class World(Protocol):
    """What a run needs: a model, rows to train on, and a task's answers with the rows they answer."""

    def model(self) -> Any: ...
    def train(self) -> Any: ...
    def answers(self, tuned: Any, task: str) -> tuple[Sequence[str], Sequence[Cells]]: ...


def run(
    ledger: Ledger,
    *,
    settings: Settings | Real | None = None,
    data: Path | None = None,
    tasks: Sequence[str] = TASKS,
    seed: int = 0,
    budget: float | None = None,
    progress: Callable[[str], None] = log.info,
) -> int:
    """Train, generate and score every arm that the ledger lacks; → how many the budget left out.

    data   folder with multimodal/train.jsonl and a file for each of `tasks`; needed for a `Real` model, and for no other
    """
    chosen = settings or Settings()
    if unknown := [task for task in tasks if task not in TASKS]:
        raise RecipeError(f"no task {unknown[0]!r}{nearest(unknown[0], TASKS)}; there are {', '.join(TASKS)}")
    if isinstance(chosen, Real) != (data is not None):
        raise RecipeError("a real model needs a folder of pictures, and the random one takes none")

    def jobs() -> Iterator[Job]:
        for arm in chosen.arms:
            recipe = {"experiment": "multimodal", **dataclasses.asdict(chosen), "method": arm}
            recipe |= {} if data is None else {"tasks": list(tasks)}
            yield Job(f"multimodal, {arm}", recipe, seed, partial(_compute, chosen, data, tasks, arm, seed))

    return run_jobs(jobs(), ledger, budget=budget, progress=progress)


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


def _compute(settings: Settings | Real, data: Path | None, tasks: Sequence[str], arm: str, seed: int) -> dict[str, Any]:
    set_seed(seed)
    if isinstance(settings, Real):
        assert data is not None, "run() asks for it"
        world: World = _Disk(settings, data)
    else:
        world = _Noise(settings, seed)
    method, lora = ARMS[arm]
    target: dict[str, Any] = {"target_modules": ("language_model",), "group_size": settings.group_size, "lora": lora}
    tuned = find(method).tune(world.model(), Recipe(model="llava", data="pictures", output="", **target))
    with tempfile.TemporaryDirectory() as folder:
        arguments = one_device(TrainingArguments(
            output_dir=str(Path(folder)), num_train_epochs=settings.epochs, learning_rate=settings.learning_rate,
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.gradient_accumulation, bf16=settings.bf16,
            seed=seed, save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no",
            use_cpu=training_device(None) == "cpu", remove_unused_columns=False,
        ))  # fmt: skip
        trainer = Trainer(tuned, arguments, train_dataset=world.train(), data_collator=collate)  # type: ignore[arg-type]
        trainer.remove_callback(PrinterCallback)
        outcome = trainer.train()
    tuned.eval()
    answered = {task: world.answers(tuned, task) for task in tasks}
    return {
        "trainable": num_trainable(tuned),
        "train_loss": outcome.training_loss,
        "scores": {task: score(task, texts, rows)["accuracy"] for task, (texts, rows) in answered.items()},
        "questions": max(len(rows) for _, rows in answered.values()),
    }


class _Disk:
    """A real model's world."""

    def __init__(self, settings: Real, data: Path):
        self.settings, self.data = settings, data
        self.processor = AutoProcessor.from_pretrained(models.resolve(settings.model))

    def model(self) -> Any:
        dtype = "bfloat16" if self.settings.bf16 else "float32"
        return models.load_causal(self.settings.model, dtype=dtype, device=models.best_device())

    def train(self) -> Pictures:
        return Pictures.load(self.data, "train", self.processor)

    def answers(self, tuned: Any, task: str) -> tuple[Sequence[str], Sequence[Cells]]:
        pictures = Pictures.load(self.data, task, self.processor)
        return pictures.answers(tuned, new_tokens=self.settings.new_tokens), pictures.table.rows


class _Noise:
    """A random model's world: four rows for every task, and pictures that show nothing."""

    def __init__(self, settings: Settings, seed: int):
        self.settings, self.seed = settings, seed
        self.tokenizer = models.load_tokenizer(settings.tokenizer)

    def model(self) -> Any:
        model: Any = tiny_llava(self.settings, self.tokenizer)
        return model.to(models.best_device())

    def train(self) -> list[dict[str, Any]]:
        draw = torch.Generator().manual_seed(self.seed)
        prompt, answer = self._prompt(), list(self.tokenizer(" yes", add_special_tokens=False)["input_ids"])
        row = {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}
        return [{**row, "pixel_values": torch.randn(3, SIDE, SIDE, generator=draw)} for _ in range(self.settings.rows)]

    @torch.no_grad()
    def answers(self, tuned: Any, task: str) -> tuple[Sequence[str], Sequence[Cells]]:
        ids = torch.tensor([self._prompt()] * len(ASKED), device=tuned.device)
        pictures = torch.randn(len(ASKED), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
        output = tuned.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pictures.to(tuned.device), do_sample=False,
            max_new_tokens=self.settings.new_tokens, pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        new = output[:, ids.shape[1] :].clamp(max=len(self.tokenizer) - 1)
        return self.tokenizer.batch_decode(new, skip_special_tokens=True), ASKED

    def _prompt(self) -> list[int]:
        words = self.tokenizer("What is this?", add_special_tokens=False)["input_ids"]
        return [len(self.tokenizer)] * PATCHES + list(words)
