"""Questions about pictures on disk, through a model's own processor: rows to train on, and greedy answers.

    processor = AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf")
    pictures = Pictures.load(Path("data"), "pope", processor)
    texts = pictures.answers(model, new_tokens=16)

Rows lie in multimodal/NAME.jsonl of a data folder. They have `image` (a path from the file's folder), `question` and `answer`
or `answers`. If a benchmark has LLaVA's instruction on the form of the answer, the question includes it. The prompt is
LLaVA-1.5's, without its system text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roadkit.errors import RecipeError
from roadkit.train.data.batches import pad_batch
from roadkit.train.data.tables import Table
from roadkit.train.data.tokens import IGNORED

from ..data import read_rows

PROMPT = "USER: <image>\n{} ASSISTANT:"
BATCH = 8  # pictures answered at a time


@dataclass(frozen=True)
class Pictures:
    """The rows of one file. As a sequence it holds examples to train on, each read when it is asked for."""

    table: Table
    folder: Path
    processor: Any

    @classmethod
    def load(cls, data: Path | None, name: str, processor: Any) -> Pictures:
        """Raises `RecipeError` for a missing file, column or picture, naming the row. `data` is the folder of `read_rows`."""
        (table,) = read_rows(data, file_of(name))
        folder = Path(table.origin).parent
        for row in table:
            row.text("question")
            if not (path := folder / row.text("image")).is_file():
                raise RecipeError(f"{row.where}: there is no picture {path}")
            if "answers" not in row.cells:
                row.text("answer")
        return cls(table, folder, processor)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """input_ids and labels, a list each, with IGNORED for the prompt's labels; pixel_values [3, height, width]."""
        inputs = self._inputs([index])
        tokenizer = self.processor.tokenizer
        answer = tokenizer(f" {self.table[index].text('answer')}", add_special_tokens=False)["input_ids"]
        ids, answer = inputs["input_ids"][0].tolist(), [*answer, tokenizer.eos_token_id]
        return {
            "input_ids": ids + answer,
            "labels": [IGNORED] * len(ids) + answer,
            "pixel_values": inputs["pixel_values"][0],
        }

    @torch.no_grad()
    def answers(self, model: Any, *, new_tokens: int) -> list[str]:
        """Greedy answers in the rows' order, `BATCH` at a time."""
        texts: list[str] = []
        for at in range(0, len(self), BATCH):
            inputs = self._inputs(range(at, min(at + BATCH, len(self)))).to(model.device, model.dtype)
            pad = self.processor.tokenizer.pad_token_id
            output = model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens, pad_token_id=pad)
            new = output[:, inputs["input_ids"].shape[1] :]
            texts += [text.strip() for text in self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)]
        return texts

    def _inputs(self, indices: Sequence[int]) -> Any:
        from PIL import Image

        images = []
        for i in indices:
            with Image.open(self.folder / self.table[i].text("image")) as image:
                images.append(image.convert("RGB"))
        prompts = [PROMPT.format(self.table[i].text("question")) for i in indices]
        return self.processor(images=images, text=prompts, padding=True, padding_side="left", return_tensors="pt")


def file_of(name: str) -> str:
    """The name of a benchmark's rows in `paper.data`; "train" are those to train on."""
    return f"multimodal/{name}"


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Examples of `Pictures` as one batch, padded on the right."""
    return pad_batch(list(rows), 0) | {"pixel_values": torch.stack([row["pixel_values"] for row in rows])}
