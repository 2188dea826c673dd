"""Rows about pictures: a prompt without loss, an answer, and batches that answer as rows alone do."""

from __future__ import annotations

import pytest
import torch

from paper.runs.multimodal import PATCHES, SIDE
from paper.tuning.pictures import PROMPT, Pictures, collate
from roadkit import models
from roadkit.errors import RecipeError


def test_a_row_is_a_picture_a_prompt_without_loss_and_an_answer(processor, album):
    rows = Pictures.load(album, "train", processor)
    assert len(rows) == 8
    row = rows[0]
    ids, answered = torch.tensor(row["input_ids"]), torch.tensor(row["labels"]) != -100
    tokenizer = processor.tokenizer
    assert tokenizer.decode(ids[answered]) == " yes" + tokenizer.eos_token
    prompt = tokenizer.decode(ids[~answered])
    assert prompt.replace("<image>" * PATCHES, "<image>") == PROMPT.format("Is it red?")
    assert row["pixel_values"].shape == (3, SIDE, SIDE)
    batch = collate([rows[0], rows[7]])
    assert batch["attention_mask"].sum(1).tolist() == [len(rows[0]["input_ids"]), len(rows[7]["input_ids"])]
    assert (batch["labels"][1, len(rows[7]["input_ids"]) :] == -100).all()


def test_batches_answer_as_rows_alone(llava, processor, album):
    pictures = Pictures.load(album, "pope", processor)
    model = models.load_causal(llava)
    together = pictures.answers(model, new_tokens=4)
    for i in (0, 5):
        one = Pictures(pictures.table.take([i]), pictures.folder, pictures.processor)
        assert one.answers(model, new_tokens=4) == [together[i]]


def test_a_missing_file_and_a_missing_picture_are_named(processor, tmp_path):
    with pytest.raises(RecipeError, match=r"no multimodal/train\.jsonl in .*image, question, answer"):
        Pictures.load(tmp_path, "train", processor)
    (tmp_path / "multimodal").mkdir()
    (tmp_path / "multimodal" / "train.jsonl").write_text('{"image": "x.png", "question": "?", "answer": "yes"}\n')
    with pytest.raises(RecipeError, match=r"row 1: there is no picture .*x\.png"):
        Pictures.load(tmp_path, "train", processor)
