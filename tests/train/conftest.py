"""A tokenizer of single bytes with a chat template, tiny bases on disk, and rows to train on. No network."""

from __future__ import annotations

import json

import pytest

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "[CLS]", "[SEP]")
VOCABULARY = 264  # 256 bytes and the special tokens, rounded up


def make_tokenizer(*, chat: bool = True, pairs: bool = False):
    """Every byte is a token; `pairs` puts [CLS] and [SEP] around sentences, as BERT does."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    inner = Tokenizer(BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    if pairs:
        ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
        inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<|im_end|>" if chat else "</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT if chat else None
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def plain_tokenizer():
    return make_tokenizer(chat=False)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory, tiny_llama):
    """A decoder and its tokenizer on disk, as a recipe's `model`."""
    folder = tmp_path_factory.mktemp("base") / "llama"
    tiny_llama(vocab_size=VOCABULARY).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory, tiny_bert):
    """An encoder and its tokenizer on disk."""
    folder = tmp_path_factory.mktemp("base") / "bert"
    tiny_bert(vocab_size=VOCABULARY).save_pretrained(folder)
    make_tokenizer(chat=False, pairs=True).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def write_rows(tmp_path):
    """`write_rows(rows, "name.jsonl")` → the file's path as text."""

    def write(rows, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def questions(write_rows):
    """Twelve question-answer rows of different lengths."""
    return write_rows(
        [
            {"prompt": f"{'really ' * (i % 3)}what is {i}?", "completion": f"it is {i}" + "!" * (i % 4)}
            for i in range(12)
        ]
    )


@pytest.fixture
def make_recipe(llama_folder, questions, tmp_path):
    """A recipe that takes a second to run; arguments override."""
    from roadkit.train import Recipe

    def make(**changes):
        values = {
            "model": llama_folder,
            "data": questions,
            "output": str(tmp_path / "adapter"),
            "group_size": 16,
            "batch_size": 4,
            "max_steps": 4,
            "learning_rate": 2e-2,
        }
        return Recipe(**values | changes)

    return make
