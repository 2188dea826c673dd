"""Tiny models on disk, and a folder of rows as the experiments read them."""

from __future__ import annotations

import json
import random

import pytest

from tests.train.conftest import VOCABULARY, make_tokenizer


@pytest.fixture(scope="session")
def bert(tmp_path_factory, tiny_bert) -> str:
    folder = tmp_path_factory.mktemp("base") / "bert"
    tiny_bert(vocab_size=VOCABULARY).save_pretrained(folder)
    make_tokenizer(chat=False, pairs=True).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def llama(tmp_path_factory, tiny_llama) -> str:
    folder = tmp_path_factory.mktemp("base") / "llama"
    tiny_llama(vocab_size=VOCABULARY, max_position_embeddings=2048).save_pretrained(folder)
    tokenizer = make_tokenizer(chat=False)
    tokenizer.model_max_length = 2048
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """GLUE, commonsense, arithmetic and instruction rows of our own, a few of each."""
    root, draw = tmp_path_factory.mktemp("data"), random.Random(0)

    def write(name: str, rows: list[dict]) -> None:
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def words(label: int) -> str:
        return " ".join(draw.choice(("good", "fine") if label else ("bad", "poor")) for _ in range(3))

    for name in ("sst2_sentences_train", "sst2_dev", "cola_train", "cola_dev"):
        write(f"glue/{name}.jsonl", [{"sentence1": words(i % 2), "label": i % 2} for i in range(40)])
    for part in ("train", "dev"):
        rows = [{"sentence1": words(i % 2), "sentence2": words(1), "label": 5.0 * (i % 2)} for i in range(40)]
        write(f"glue/stsb_{part}.jsonl", rows)
    asked = [
        {"instruction": f"Is {i} even?", "input": "", "output": f"the correct answer is {word}", "answer": word}
        for i, word in enumerate(["true", "false"] * 4)
    ]
    for name in ("boolq_train", "arc_easy_train", "arc_challenge_train", "openbookqa_train", "boolq_test"):
        write(f"commonsense/{name}.jsonl", asked)
    write("commonsense/hellaswag_sub_test.jsonl", [{"ctx": "It", "endings": ["a", "b", "c", "d"], "label": "2"}])
    write("math/mawps_train_clean.jsonl", [{"question": "1 and 2?", "equation": "X=(1.0+2.0)", "answer": 3.0}])
    solved = "1 + 2 = <<1+2=3>>3\n#### 3"
    write("math/gsm8k_official_train.jsonl", [{"question": "1 and 2?", "answer": solved, "final_answer": "3"}])
    write("math/svamp_test.jsonl", [{"instruction": "1 and 2?", "output": "", "answer": "3"}])
    write("instruct/ultrafeedback_1k.jsonl", [{"instruction": "Hi", "input": "", "output": "Hello"}] * 4)
    write(
        "instruct/alpaca_eval_805.jsonl",
        [{"instruction": "Hi", "dataset": "ours"}, {"instruction": "Ho", "dataset": "ours"}],
    )
    return root


@pytest.fixture
def encoder(bert):
    """Settings of a few steps on the tiny encoder."""
    from paper.tuning.encoders import EncoderSettings

    return EncoderSettings(model=bert, rows=12, validation=8, test=8, epochs=1, batch_size=4, group_size=16)


@pytest.fixture
def decoder(llama):
    """Settings of a few steps on the tiny decoder."""
    from paper.tuning.decoders import DecoderSettings

    return DecoderSettings(
        model=llama, rows=4, questions=2, epochs=1, batch_size=2, max_length=512, new_tokens=3, group_size=16
    )


@pytest.fixture
def ledger(tmp_path):
    from paper.ledger import Ledger

    return Ledger(tmp_path / "ledger.jsonl")


@pytest.fixture(scope="session")
def llava(tmp_path_factory) -> str:
    """A tiny LLaVA and its processor on disk."""
    import torch
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    from paper.runs.multimodal import SIDE, RandomLlava, tiny_llava

    tokenizer = make_tokenizer(chat=False)
    torch.manual_seed(0)
    model = tiny_llava(RandomLlava(width=64), tokenizer)
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


@pytest.fixture
def processor(llava):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(llava)


@pytest.fixture(scope="session")
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
