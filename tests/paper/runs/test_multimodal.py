"""Table 6 on pictures that lie on disk, with a tiny LLaVA and its own processor."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from typer.testing import CliRunner

from paper.cli import app
from paper.runs import multimodal
from paper.tuning.pictures import PROMPT, Pictures, collate
from roadkit import models
from roadkit.errors import RecipeError, RoadkitError
from tests.train.conftest import make_tokenizer

SIDE = 28


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> str:
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    tokenizer = make_tokenizer(chat=False)
    settings = multimodal.Settings(width=64)
    torch.manual_seed(0)
    model = multimodal.tiny_llava(settings, tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})  # the one past the last
    size = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size), tokenizer=tokenizer,
        patch_size=SIDE // 2, vision_feature_select_strategy="default", image_token="<image>",
        num_additional_image_tokens=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base") / "llava"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """Pictures of one colour; what is asked about them in every benchmark has the same answer: whether they are red."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("album") / "multimodal"
    folder.mkdir()
    rows = []
    for i in range(8):
        red = i % 2 == 0
        Image.new("RGB", (40, 30), (250, 10, 10) if red else (10, 10, 250)).save(folder / f"{i}.png")
        answer = "yes" if red else "no"
        rows.append({"image": f"{i}.png", "question": "Is it red?" if i < 4 else "Red?", "answer": answer})
    for name in ("train", "gqa", "pope", "scienceqa"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    people = [{**row, "answers": [row["answer"]] * 10} for row in rows]
    (folder / "textvqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in people))
    return folder.parent


def processor_of(folder: str):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder)


def test_a_row_is_a_picture_a_prompt_without_loss_and_an_answer(llava, album):
    processor = processor_of(llava)
    rows = Pictures.load(album, "train", processor)
    assert len(rows) == 8
    row = rows[0]
    ids, answered = torch.tensor(row["input_ids"]), torch.tensor(row["labels"]) != -100
    tokenizer = processor.tokenizer
    assert tokenizer.decode(ids[answered]) == " yes" + tokenizer.eos_token
    prompt = tokenizer.decode(ids[~answered])
    assert prompt.replace("<image>" * multimodal.PATCHES, "<image>") == PROMPT.format("Is it red?")
    assert row["pixel_values"].shape == (3, SIDE, SIDE)
    batch = collate([rows[0], rows[7]])
    assert batch["attention_mask"].sum(1).tolist() == [len(rows[0]["input_ids"]), len(rows[7]["input_ids"])]
    assert (batch["labels"][1, len(rows[7]["input_ids"]) :] == -100).all()


def test_pictures_are_learnt_and_scored(llava, album, ledger):
    real = dataclasses.replace(
        multimodal.FULL, model=llava, epochs=120, batch_size=8, gradient_accumulation=1, learning_rate=1e-2,
        new_tokens=6, bf16=False,
    )  # fmt: skip
    options = {"settings": real, "data": album, "tasks": ["pope", "textvqa"]}
    assert multimodal.run(ledger, **options) == 0
    scores = {row["recipe"]["method"]: row["metrics"]["scores"] for row in ledger.rows()}
    assert scores.keys() == {"lora_128", "road_4", "road_1+lora_32"}
    # red or not is in the picture alone; the LoRAs would need other learning rates
    assert scores["road_4"] == {"pope": 1.0, "textvqa": 1.0}
    assert all(row["metrics"]["questions"] == 8 for row in ledger.rows())
    before = ledger.path.read_bytes()
    assert multimodal.run(ledger, **options) == 0 and ledger.path.read_bytes() == before


def test_batches_answer_as_rows_alone(llava, album):
    pictures = Pictures.load(album, "pope", processor_of(llava))
    model = models.load_causal(llava)
    together = pictures.answers(model, new_tokens=4)
    for i in (0, 5):
        one = Pictures(pictures.table.take([i]), pictures.folder, pictures.processor)
        assert one.answers(model, new_tokens=4) == [together[i]]


def test_what_is_missing_is_named(llava, album, tmp_path, ledger):
    processor = processor_of(llava)
    with pytest.raises(RecipeError, match=r"no train\.jsonl in .*multimodal .*image, question, answer"):
        Pictures.load(tmp_path, "train", processor)
    (tmp_path / "multimodal").mkdir()
    (tmp_path / "multimodal" / "train.jsonl").write_text('{"image": "x.png", "question": "?", "answer": "yes"}\n')
    with pytest.raises(RecipeError, match=r"row 1: there is no picture .*x\.png"):
        Pictures.load(tmp_path, "train", processor)
    with pytest.raises(RecipeError, match="a real model needs a folder of pictures"):
        multimodal.run(ledger, settings=multimodal.FULL)
    with pytest.raises(RecipeError, match="no task 'gqaa'"):
        multimodal.run(ledger, tasks=["gqaa"])
    words = ["multimodal", "--model", llava, "--ledger", str(tmp_path / "l")]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, RoadkitError) and "--model is for --scale full" in str(done.exception)


def test_the_command_runs_a_model_of_ones_own(llava, album, tmp_path):
    path = tmp_path / "ledger.jsonl"
    words = [
        "multimodal", "--scale", "full", "--model", llava, "--data", str(album), "--tasks", "gqa",
        "--batch-size", "8", "--no-bf16", "--ledger", str(path), "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert json.loads(done.stdout.splitlines()[-1]) == {"ledger": str(path), "runs": 3, "left": 0}
