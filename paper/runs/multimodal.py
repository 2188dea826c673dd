"""Multimodal tuning (table 6): LoRA, RoAd4, and RoAd1 with a LoRA around it, on a LLaVA model's language part.

    run_multimodal(RandomLlava(), Ledger(path))                         # noise through a random model: plumbing only
    run_multimodal(PretrainedLlava(), Ledger(path), data=Path("data"))  # pictures and questions on disk

A pretrained model trains on the rows of train.jsonl and answers those of the tasks' files; `paper.tuning.pictures` says how
they look.
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

from ..data import check_rows
from ..ledger import Ledger
from ..scoring.visual_questions import PICTURE_TASKS, score_answers
from ..tuning.methods import find_method, num_trainable
from ..tuning.pictures import Pictures, collate, file_of
from .jobs import Job, log, run_jobs


def _with_lora(rank: int) -> tuple[str, LoraOptions]:
    return "road_1", LoraOptions(r=rank, alpha=2 * rank, dropout=0.0)


MULTIMODAL_METHODS = {  # name → the method, and a LoRA around it
    "lora": ("lora", None),
    "lora_128": ("lora_128", None),
    "road_4": ("road_4", None),
    "road_1+lora": _with_lora(8),
    "road_1+lora_32": _with_lora(32),
}
MULTIMODAL_LABELS = {"road_1+lora": "RoAd1 + LoRA r=8", "road_1+lora_32": "RoAd1 + LoRA r=32"}
PATCHES, SIDE = 4, 28  # a random picture is four patches of 14 × 14
# what the random model is asked in every task
ASKED = [{"answer": answer, "answers": [answer] * 10} for answer in ("yes", "no", "A", "two dogs")]


@dataclass(frozen=True)
class RandomLlava:
    """A tiny random LLaVA. What passes through it is noise, and so is every score."""

    scale: str = "plumbing only: a random LLaVA"
    tokenizer: str = "smollm2"
    width: int = 64
    blocks: int = 2
    rows: int = 8
    epochs: int = 2
    new_tokens: int = 4
    methods: ClassVar = ("lora", "road_4", "road_1+lora")
    batch_size: ClassVar = 4
    gradient_accumulation: ClassVar = 1
    learning_rate: ClassVar = 3e-3
    group_size: ClassVar = 16
    bf16: ClassVar = False


@dataclass(frozen=True)
class PretrainedLlava:
    """A LLaVA model that trains on pictures, with LLaVA-1.5's batch and one learning rate for all methods.

    The LoRAs have the paper's size: 4.61 % and 1.19 % of LLaMA-7B are ranks of 128 and 32 (table 6).
    """

    scale: str = "full"
    model: str = "llava-hf/llava-1.5-7b-hf"
    epochs: int = 1
    batch_size: int = 16
    gradient_accumulation: int = 8
    learning_rate: float = 3e-4
    new_tokens: int = 16
    group_size: int = 2
    bf16: bool = True
    methods: ClassVar = ("lora_128", "road_4", "road_1+lora_32")


class LlavaSource(Protocol):
    """Where a run's model, training rows and answers come from."""

    def model(self) -> Any: ...
    def training_rows(self) -> Any: ...
    def answers(self, tuned: Any, task: str) -> tuple[Sequence[str], Sequence[Cells]]:
        """The trained model's answers for a task, and the rows that they answer."""
        ...


def run_multimodal(
    settings: RandomLlava | PretrainedLlava,
    ledger: Ledger,
    *,
    data: Path | None = None,
    tasks: Sequence[str] = PICTURE_TASKS,
    seed: int = 0,
    budget: float | None = None,
    progress: Callable[[str], None] = log.info,
) -> int:
    """Train and score every method that the ledger lacks; → how many the budget left out.

    data   the folder of `read_rows`, with multimodal/train.jsonl and a file for each of `tasks`; not for a random model
    """
    if unknown := [task for task in tasks if task not in PICTURE_TASKS]:
        near = nearest(unknown[0], PICTURE_TASKS)
        raise RecipeError(f"no task {unknown[0]!r}{near}; there are {', '.join(PICTURE_TASKS)}")
    if isinstance(settings, RandomLlava) and data is not None:
        raise RecipeError("a random model takes no folder of pictures: what it sees is noise")

    def jobs() -> Iterator[Job]:
        for method in settings.methods:
            setup = {"experiment": "multimodal", **dataclasses.asdict(settings), "method": method}
            setup |= {"tasks": list(tasks)} if isinstance(settings, PretrainedLlava) else {}
            compute = partial(_compute, settings, data, tasks, method, seed)
            yield Job(f"multimodal, {method}", setup, seed, compute)

    return run_jobs(jobs(), ledger, budget=budget, progress=progress)


def tiny_llava(settings: RandomLlava, tokenizer: Any) -> LlavaForConditionalGeneration:
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


def _compute(
    settings: RandomLlava | PretrainedLlava, data: Path | None, tasks: Sequence[str], method: str, seed: int
) -> dict[str, Any]:
    set_seed(seed)
    source: LlavaSource
    if isinstance(settings, PretrainedLlava):
        check_rows(data, *map(file_of, ("train", *tasks)))
        source = _PicturesOnDisk(settings, data)
    else:
        source = _Noise(settings, seed)
    rotation, lora = MULTIMODAL_METHODS[method]
    target: dict[str, Any] = {"target_modules": ("language_model",), "group_size": settings.group_size, "lora": lora}
    tuned = find_method(rotation).tune(source.model(), Recipe(model="llava", data="pictures", output="", **target))
    with tempfile.TemporaryDirectory() as folder:
        arguments = one_device(TrainingArguments(
            output_dir=str(Path(folder)), num_train_epochs=settings.epochs, learning_rate=settings.learning_rate,
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.gradient_accumulation, bf16=settings.bf16,
            seed=seed, save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no",
            use_cpu=training_device(None) == "cpu", remove_unused_columns=False,
        ))  # fmt: skip
        trainer = Trainer(tuned, arguments, train_dataset=source.training_rows(), data_collator=collate)  # type: ignore[arg-type]
        trainer.remove_callback(PrinterCallback)
        outcome = trainer.train()
    tuned.eval()
    answered = {task: source.answers(tuned, task) for task in tasks}
    return {
        "trainable": num_trainable(tuned),
        "train_loss": outcome.training_loss,
        "scores": {task: score_answers(task, texts, rows)["accuracy"] for task, (texts, rows) in answered.items()},
        "questions": max(len(rows) for _, rows in answered.values()),
    }


class _PicturesOnDisk:
    """A pretrained model, and rows of a data folder."""

    def __init__(self, settings: PretrainedLlava, data: Path | None):
        self.settings, self.data = settings, data
        self.processor = AutoProcessor.from_pretrained(models.resolve(settings.model))

    def model(self) -> Any:
        dtype = "bfloat16" if self.settings.bf16 else "float32"
        return models.load_causal(self.settings.model, dtype=dtype, device=models.best_device())

    def training_rows(self) -> Pictures:
        return Pictures.load(self.data, "train", self.processor)

    def answers(self, tuned: Any, task: str) -> tuple[Sequence[str], Sequence[Cells]]:
        pictures = Pictures.load(self.data, task, self.processor)
        return pictures.answers(tuned, new_tokens=self.settings.new_tokens), pictures.table.rows


class _Noise:
    """A random model, pictures that show nothing, and four rows for every task."""

    def __init__(self, settings: RandomLlava, seed: int):
        self.settings, self.seed = settings, seed
        self.tokenizer = models.load_tokenizer(settings.tokenizer)

    def model(self) -> Any:
        model: Any = tiny_llava(self.settings, self.tokenizer)
        return model.to(models.best_device())

    def training_rows(self) -> list[dict[str, Any]]:
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
