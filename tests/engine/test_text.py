from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from roadkit.engine.text import Detokenizer, _overlap


@pytest.fixture(scope="module")
def llama_tokenizer():
    """As Llama's and Gemma's: pieces with ▁ for a space, single bytes for what the vocabulary lacks."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"helowrd", "▁hello", "▁world"]
    tokenizer = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", clean_up_tokenization_spaces=False)


def stream(tokenizer, token_ids, stop=()) -> tuple[list[str], Detokenizer]:
    """The pieces as they come, up to a stop."""
    detokenizer, pieces = Detokenizer(tokenizer, stop), []
    for token in token_ids:
        pieces.append(detokenizer.push(token))
        if detokenizer.stopped:
            break
    pieces.append(detokenizer.finish())
    return pieces, detokenizer


def test_what_follows_a_prompt_keeps_its_first_space(llama_tokenizer):
    prompt, answer = (llama_tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("hello", "world hello"))
    assert "".join(stream(llama_tokenizer, answer)[0]) == "world hello"
    detokenizer = Detokenizer(llama_tokenizer, before=prompt)
    assert "".join([*map(detokenizer.push, answer), detokenizer.finish()]) == " world hello"
    cut = llama_tokenizer("é", add_special_tokens=False)["input_ids"][:-1]  # a prompt that ends inside a character
    detokenizer = Detokenizer(llama_tokenizer, before=[*prompt, *cut])
    assert "".join([*map(detokenizer.push, answer), detokenizer.finish()]).endswith("world hello")


# ---- pieces are the whole ---------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(st.lists(st.integers(0, 383), max_size=30))
def test_pieces_of_any_tokens_are_their_text(tiny_tokenizer, token_ids):
    pieces, detokenizer = stream(tiny_tokenizer, token_ids)
    assert "".join(pieces) == detokenizer.text == tiny_tokenizer.decode(token_ids, skip_special_tokens=True)


@settings(max_examples=50)
@given(st.text(max_size=20))
@example("naïve 🏴‍☠️ 漢字")
def test_pieces_of_any_text_are_the_text(tiny_tokenizer, text):
    pieces, _ = stream(tiny_tokenizer, tiny_tokenizer(text)["input_ids"])
    assert "".join(pieces) == text
    assert not any("�" in piece for piece in pieces) or "�" in text, "half a character was shown"


characters = st.characters(codec="utf-8").map(lambda character: [3 + byte for byte in character.encode()])
units = st.one_of(characters, st.sampled_from([[1], [2], *([i] for i in range(259, 269))]))


@settings(max_examples=150)
@given(st.lists(units, max_size=12).map(lambda parts: [token for part in parts for token in part]))
@example([260, 259, 260, 268])
@example([260, 3 + 0xC3])  # ends with half a character
def test_pieces_of_other_tokenizers_are_their_text(llama_tokenizer, token_ids):
    pieces, detokenizer = stream(llama_tokenizer, token_ids)
    assert "".join(pieces) == detokenizer.text == llama_tokenizer.decode(token_ids, skip_special_tokens=True)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 268), max_size=20))
@example([3, 131, 0])
def test_bytes_that_are_no_text_do_no_harm(llama_tokenizer, token_ids):
    pieces, detokenizer = stream(llama_tokenizer, [*token_ids, 267])
    assert "".join(pieces) == detokenizer.text
    assert detokenizer.text.endswith("hello")


def test_text_comes_as_soon_as_it_is_certain(tiny_tokenizer):
    ids = tiny_tokenizer("the quick é")["input_ids"]
    detokenizer = Detokenizer(tiny_tokenizer)
    seen = ""
    for count, token in enumerate(ids, 1):
        seen += detokenizer.push(token)
        whole = tiny_tokenizer.decode(ids[:count])
        assert seen == whole.removesuffix("�")


def test_half_a_character_at_the_end_is_shown_when_it_is_over(tiny_tokenizer):
    ids = tiny_tokenizer("aé")["input_ids"]
    assert len(ids) == 3
    detokenizer = Detokenizer(tiny_tokenizer)
    assert [detokenizer.push(token) for token in ids[:2]] == ["a", ""]
    assert detokenizer.finish() == "�"
    assert detokenizer.text == "a�"


def test_special_tokens_are_silent(tiny_tokenizer):
    ids = [tiny_tokenizer.bos_token_id, *tiny_tokenizer("the")["input_ids"], tiny_tokenizer.eos_token_id]
    assert stream(tiny_tokenizer, ids)[1].text == "the"


# ---- stop strings -----------------------------------------------------------------------------------------------


def test_stop_across_token_borders(tiny_tokenizer):
    text = "the lazy dog END of it"
    ids = tiny_tokenizer(text)["input_ids"]
    for stop in ("END", "dog END", " E", "g EN", "the", "it"):
        pieces, detokenizer = stream(tiny_tokenizer, ids, (stop,))
        assert detokenizer.stopped
        assert "".join(pieces) == detokenizer.text == text[: text.find(stop)]


def test_what_could_become_a_stop_is_held_back_and_released(tiny_tokenizer):
    detokenizer = Detokenizer(tiny_tokenizer, ("xyz",))
    pushed = [detokenizer.push(tiny_tokenizer.convert_tokens_to_ids(letter)) for letter in "axybxyxyz"]
    assert pushed == ["a", "", "", "xyb", "", "", "xy", "", ""]
    assert detokenizer.stopped
    assert detokenizer.text == "axybxy"
    assert detokenizer.finish() == ""


def test_what_is_held_back_comes_at_the_end(tiny_tokenizer):
    pieces, detokenizer = stream(tiny_tokenizer, tiny_tokenizer("ab\n")["input_ids"], ("\n\n",))
    assert not detokenizer.stopped
    assert pieces == ["a", "b", "", "\n"]


letters = st.text("ab\n", max_size=14)


@settings(max_examples=200)
@given(letters, st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3).map(tuple))
@example("aab", ("ab", "aab"))
@example("aaab", ("aab",))
def test_text_ends_where_the_first_stop_begins(tiny_tokenizer, text, stops):
    pieces, detokenizer = stream(tiny_tokenizer, tiny_tokenizer(text)["input_ids"], stops)
    whole = next((text[:n] for n in range(1, len(text) + 1) if any(stop in text[:n] for stop in stops)), None)
    expected = text if whole is None else whole[: min(at for at in map(whole.find, stops) if at >= 0)]
    assert "".join(pieces) == detokenizer.text == expected
    assert detokenizer.stopped == (whole is not None)


def test_overlap_is_the_longest_beginning():
    assert _overlap("abab", "abac") == 2
    assert _overlap("xaba", "abac") == 3
    assert _overlap("abac", "abac") == 0, "a whole stop is a match, not a beginning"
    assert _overlap("", "a") == 0
