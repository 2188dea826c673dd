"""End to end with the official client against a server process."""

import json

import openai
import pytest


def test_models_are_listed(server):
    names = [model.id for model in server.openai.models.list()]
    assert names[0] == "tiny" and {"quick", "lazy"} <= set(names)
    assert server.openai.models.retrieve("quick*0.5").id == "quick*0.5"


def ask(server, model="tiny", **options):
    options = {"model": model, "prompt": "the quick brown", "max_tokens": 8, "temperature": 0} | options
    return server.openai.completions.create(**options)


def test_every_expression_gives_its_own_answer(server):
    expressions = ["tiny", "quick", "lazy", "quick*0.5", "-quick", "quick + lazy", "lazy + quick*0.3"]
    texts = [ask(server, name, max_tokens=16).choices[0].text for name in expressions]
    assert len(set(texts)) == len(texts)
    assert ask(server, "quick - quick", max_tokens=16).choices[0].text == texts[0]


def test_completion_has_openais_shape(server):
    answer = ask(server, n=2, seed=3, temperature=1.0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert answer.choices[0].text != answer.choices[1].text
    assert answer.usage.completion_tokens == 16
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 16
    assert answer.choices[0].finish_reason == "length"
    assert ask(server, n=2, seed=3, temperature=1.0).choices[1].text == answer.choices[1].text


def test_prompts_come_as_text_tokens_and_lists(server):
    first = ask(server)
    ids = list(range(3, 20))
    assert ask(server, prompt=ids).choices[0].text == ask(server, prompt=[ids]).choices[0].text
    both = ask(server, prompt=["the quick brown", "over the lazy"])
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text == first.choices[0].text


def test_stream_equals_the_whole(server):
    whole = ask(server, max_tokens=24)
    pieces = list(ask(server, max_tokens=24, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].text for piece in pieces[:-1]) == whole.choices[0].text
    assert pieces[-1].choices == [] and pieces[-1].usage == whole.usage
    assert pieces[-2].choices[0].finish_reason == "length" and len(pieces) > 5


def test_stop_strings_end_the_text(server):
    text = ask(server, max_tokens=24).choices[0].text
    stop = text[5:7]
    answer = ask(server, max_tokens=24, stop=[stop])
    assert answer.choices[0].text == text[: text.index(stop)] and answer.choices[0].finish_reason == "stop"


def test_echo_with_logprobs_scores_a_text(server):
    """What evaluation harnesses send: the prompt's own log-probabilities, nothing or one token generated."""
    prompt = "the quick brown fox"
    answer = ask(server, prompt=prompt, echo=True, logprobs=1, max_tokens=0)
    scores = answer.choices[0].logprobs
    assert answer.choices[0].text == prompt and "".join(scores.tokens) == prompt
    assert scores.token_logprobs[0] is None and all(value < 0 for value in scores.token_logprobs[1:])
    assert all(token in top for token, top in zip(scores.tokens[1:], scores.top_logprobs[1:], strict=True))
    assert scores.text_offset[0] == 0 and scores.text_offset[-1] + len(scores.tokens[-1]) == len(prompt)
    one = ask(server, prompt=prompt, echo=True, logprobs=1, max_tokens=1).choices[0].logprobs
    assert one.token_logprobs[:-1] == pytest.approx(scores.token_logprobs, nan_ok=True) or one.token_logprobs[1:-1] == (
        pytest.approx(scores.token_logprobs[1:], abs=1e-4)
    )


def test_greedy_token_is_the_likeliest(server):
    scores = ask(server, logprobs=3).choices[0].logprobs
    for token, value, top in zip(scores.tokens, scores.token_logprobs, scores.top_logprobs, strict=True):
        assert value == max(top.values()) and token in top and len(top) == 3


MESSAGES = [{"role": "user", "content": "jumps over"}]


def chat(server, model="tiny", **options):
    options = {"model": model, "messages": MESSAGES, "max_tokens": 8, "temperature": 0} | options
    return server.openai.chat.completions.create(**options)


def test_chat_answers_and_streams(server):
    whole = chat(server, "quick", max_completion_tokens=12, max_tokens=openai.omit)
    assert whole.choices[0].message.role == "assistant" and whole.usage.completion_tokens == 12
    pieces = list(chat(server, "quick", max_tokens=12, stream=True))
    assert pieces[0].choices[0].delta.role == "assistant"
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == whole.choices[0].message.content
    assert pieces[-1].choices[0].finish_reason == "length" and pieces[-1].object == "chat.completion.chunk"


def test_chat_logprobs_hold_bytes(server):
    answer = chat(server, logprobs=True, top_logprobs=2, max_tokens=20)
    content = answer.choices[0].logprobs.content
    assert len(content) == 20 and all(len(one.top_logprobs) == 2 for one in content)
    spelt = b"".join(bytes(one.bytes) for one in content if not one.token.startswith("<"))
    assert answer.choices[0].message.content.encode() == spelt or "�" in answer.choices[0].message.content


def test_content_parts_are_text(server):
    parts = [{"role": "user", "content": [{"type": "text", "text": "jumps"}, {"type": "text", "text": " over"}]}]
    assert chat(server, messages=parts).choices[0].message.content == chat(server).choices[0].message.content


def test_json_schema_is_followed(server):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    answer = chat(server, "quick", response_format=wanted, max_tokens=40)
    assert json.loads(answer.choices[0].message.content)["a"] in (1, 2)
    assert answer.choices[0].finish_reason == "stop"


def test_long_prompts_are_read_in_chunks(server):
    """More tokens than one step computes: the steps before the last have no logits to give."""
    assert len(ask(server, prompt=[5] * 900).choices[0].text) > 0


def test_unknown_model_is_404_with_a_hint(server):
    with pytest.raises(openai.NotFoundError) as caught:
        ask(server, "quik")
    assert "did you mean 'quick'" in caught.value.message and caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"logprobs": 1000}, "logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"stop": ["x"] * 100}, "stop"),
        ({"stop": ""}, "stop"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [100000]}, "vocabulary"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"extra_body": {"bogus": 1}}, "Unrecognized request argument supplied: bogus"),
        ({"extra_body": {"temprature": 1}}, "supplied: temprature; did you mean 'temperature'?"),
        ({"model": "quick*9"}, "strength"),
        ({"model": "quick*"}, "number"),
        ({"model": ""}, "name"),
        ({"model": "quick" + " + quick" * 20}, "terms"),
        ({"model": "quick + other"}, "group_size"),
        ({"prompt": "zq xj" * 400}, "context"),
    ],
)
def test_mistakes_are_400_in_openais_shape(server, change, word):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server, **change)
    error = caught.value.response.json()["error"]
    assert word in error["message"] and error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


def test_harmless_fields_are_taken(server):
    ask(server, user="someone", frequency_penalty=0, presence_penalty=0.0, best_of=1, extra_body={"top_k": 5})
    chat(server, metadata={"a": "b"}, store=False, tools=[], service_tier="auto")


@pytest.mark.model
@pytest.mark.slow
def test_the_real_model_answers(start):
    server = start("--max-context", "512", model="smollm2")
    question = [{"role": "user", "content": "What is the capital of Italy? Answer briefly."}]
    answer = chat(server, messages=question, max_tokens=24)
    assert "Rome" in answer.choices[0].message.content
    assert server.stop() == 0
