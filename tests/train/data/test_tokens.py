"""Exactly the tokens of the answers bear the loss, and prompts are tokenised as at inference."""

from __future__ import annotations

from roadkit.train import Recipe
from roadkit.train.data.encoded import encode
from roadkit.train.data.formats import detect
from roadkit.train.data.tables import Table
from roadkit.train.data.tokens import IGNORED


def encoded(tokenizer, *rows, max_length=512, **changes):
    table = Table(rows, list(range(1, len(rows) + 1)), "rows.jsonl")
    recipe = Recipe(model="m", data="d", output="o", **changes)
    layout = detect(table, recipe, chat=bool(tokenizer.chat_template))
    return encode(table, layout, tokenizer, recipe, max_length=max_length)


def learnt(tokenizer, example) -> str:
    """The loss-bearing text, pieces separated by |."""
    pieces, open_piece = [], False
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        assert label in (token, IGNORED)
        if label != IGNORED:
            pieces[-1:] = [pieces[-1] + [token]] if open_piece else [*pieces[-1:], [token]]
        open_piece = label != IGNORED
    return "|".join(tokenizer.decode(piece) for piece in pieces)


def test_answer_and_end_of_turn_bear_the_loss(tokenizer):
    (example,) = encoded(tokenizer, {"prompt": "2+2?", "completion": "4"}).examples
    assert learnt(tokenizer, example) == "4<|im_end|>"
    assert (
        tokenizer.decode(example["input_ids"]) == "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"
    )


def test_prompt_is_what_the_model_sees_at_inference(tokenizer):
    (example,) = encoded(tokenizer, {"prompt": "2+2?", "completion": "4"}).examples
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "2+2?"}], add_generation_prompt=True)[
        "input_ids"
    ]
    assert example["input_ids"][: len(asked)] == asked
    assert example["labels"][: len(asked)] == [IGNORED] * len(asked)


def test_every_answer_of_a_dialogue_bears_the_loss(tokenizer):
    roles = ("system", "user", "assistant", "user", "assistant", "user")
    messages = [{"role": role, "content": f"{role} {i}"} for i, role in enumerate(roles)]
    found = encoded(tokenizer, {"messages": messages})
    assert learnt(tokenizer, found.examples[0]) == "assistant 2<|im_end|>|assistant 4<|im_end|>"
    assert "user 5" not in tokenizer.decode(found.examples[0]["input_ids"])  # nothing is learnt after the last answer
    assert found.unmarked == 0


def test_messages_in_the_prompt_bear_no_loss(tokenizer):
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (example,) = encoded(tokenizer, {"prompt": [*turn, turn[0]], "completion": [turn[1]]}).examples
    assert learnt(tokenizer, example) == "b<|im_end|>"
    assert tokenizer.decode(example["input_ids"]).count("b<|im_end|>") == 2


def test_template_that_rewrites_earlier_turns_marks_the_last_answer(tokenizer):
    from tests.train.conftest import make_tokenizer

    changing = make_tokenizer()
    changing.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if loop.last and m['role'] == 'assistant' %}(last) "
        "{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% endif %}"
    )
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    found = encoded(changing, {"messages": turn * 2})
    assert learnt(changing, found.examples[0]) == "(last) b<|im_end|>"
    assert found.unmarked == 1


def test_completion_only_false_learns_everything(tokenizer):
    (example,) = encoded(tokenizer, {"prompt": "2+2?", "completion": "4"}, completion_only=False).examples
    assert example["labels"] == example["input_ids"]


def test_plain_text_is_learnt_with_its_end(plain_tokenizer):
    (example,) = encoded(plain_tokenizer, {"text": "abc"}).examples
    assert learnt(plain_tokenizer, example) == "abc</s>"
    (example,) = encoded(plain_tokenizer, {"prompt": "ab", "completion": "c"}).examples
    assert learnt(plain_tokenizer, example) == "c</s>"
    assert plain_tokenizer.decode(example["input_ids"]) == "abc</s>"


def test_token_that_would_cross_the_boundary_is_cut_there(plain_tokenizer):
    """As at inference, where the prompt is tokenised alone."""
    merging = _merging_tokenizer()
    assert merging("ab")["input_ids"] != merging("a")["input_ids"] + merging("b")["input_ids"]
    (example,) = encoded(merging, {"prompt": "a", "completion": "b"}).examples
    assert example["input_ids"][:2] == merging("a")["input_ids"] + merging("b")["input_ids"]
    assert learnt(merging, example) == "b</s>"


def _merging_tokenizer():
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(BPE({"</s>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>")


def test_beginning_token_is_added_to_plain_text_as_the_tokenizer_would(plain_tokenizer):
    from tokenizers import processors

    from tests.train.conftest import make_tokenizer

    starting = make_tokenizer(chat=False)
    starting.bos_token = "<s>"
    starting.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    (example,) = encoded(starting, {"prompt": "ab", "completion": "c"}).examples
    assert example["input_ids"][:3] == starting("ab")["input_ids"]
    assert example["labels"][:3] == [IGNORED] * 3
