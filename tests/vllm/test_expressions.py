"""Compositions as adapters of their own: one row each, apart in the prefix cache; and the resolver of `vllm serve`."""

import shutil

import pytest

from roadkit import expression
from roadkit.errors import AdapterError
from roadkit.vllm_plugin import loading
from roadkit.vllm_plugin.resolver import resolve
from tests.vllm.tiny import ask, expected_tokens, prompts_of, tokens_of


@pytest.fixture(scope="module")
def folder(tiny, make_adapter, tmp_path_factory):
    """A folder of three adapters, and what they are."""
    base = tiny("llama").model
    root, found = tmp_path_factory.mktemp("named"), {}
    for name, variant, seed in [("formal", "road_1", 51), ("german", "road_2", 52), ("pirate", "road_1", 53)]:
        made = make_adapter(base, variant, 64, seed=seed)
        shutil.copytree(made.path, root / name)
        found[name] = made.adapter
    return root, found


def test_name_path_and_id_are_functions_of_the_content(folder):
    root, found = folder
    sources = {name: loading.read_source(str(root / name)) for name in found}

    def request(text):
        return loading.make_request(expression.parse(text, found), sources)

    texts = ["formal", "formal*0.5", "formal + german", "german + formal", "formal - german"]
    made = [request(text) for text in texts]
    for field in ("lora_name", "lora_path", "lora_int_id"):
        assert len({getattr(each, field) for each in made}) == len(texts), field
    again = request("0.5*formal")
    assert (again.lora_name, again.lora_path, again.lora_int_id) == (
        made[1].lora_name,
        made[1].lora_path,
        made[1].lora_int_id,
    )
    changed = sources | {"formal": loading.Source(sources["formal"].path, "0" * 64)}
    other = loading.make_request(expression.parse("formal*0.5", found), changed)
    assert not {other.lora_name, other.lora_path} & {made[1].lora_name, made[1].lora_path}


def test_content_that_changed_since_is_refused(folder, make_adapter, tiny, tmp_path):
    root, _ = folder
    shutil.copytree(root / "formal", tmp_path / "a")
    request = loading.make_request((expression.Term("a", 0.5),), {"a": loading.read_source(str(tmp_path / "a"))})
    loading.read(request.lora_path)
    shutil.rmtree(tmp_path / "a")
    shutil.copytree(root / "pirate", tmp_path / "a")
    with pytest.raises(AdapterError, match="register the new version"):
        loading.read(request.lora_path)


def test_expressions_answer_as_their_composition(serve, tiny, folder):
    root, found = folder
    llm, base = serve(tiny("llama").path), tiny("llama").model
    texts = ["formal*0.7 + german", "german + formal*0.7", "formal", "formal*0.5", "-formal + pirate"]
    requests = [resolve(text, root) for text in texts]
    for i, request in enumerate(requests):
        assert request is not None
        request.lora_int_id = i + 1  # as vLLM's front end does
    (prompt,) = prompts_of(1)
    long = (prompt * 60)[:100]  # three blocks of the prefix cache: the same prompt under every name
    answers = []
    for _ in range(2):
        answers = ask(llm, [long] * len(texts), requests, tokens=6, prefill=False)
        for text, answer in zip(texts, answers, strict=True):
            assert tokens_of(answer) == expected_tokens(base, expression.compose(text, found), long, 6), text
    assert all(answer.num_cached_tokens >= 64 for answer in answers)


@pytest.mark.parametrize("text", ["formal*0.7 + nobody", "nobody", "../formal", "formal*9", "formal +german"])
def test_resolver_knows_no_such_model(folder, text):
    assert resolve(text, folder[0]) is None
