"""What is refused, when, and that the engine answers on afterwards."""

import json
import shutil

import pytest
import torch

from roadkit.adapter import Adapter
from roadkit.errors import RoadkitError
from tests.vllm.tiny import ask, expected_tokens, lora_request, prompts_of, started, tokens_of


@pytest.fixture(scope="module")
def engine(tiny):
    """One engine for the whole file: every refusal must leave it working."""
    with started(tiny("llama").path, max_loras=2, max_cpu_loras=2) as llm:
        yield llm


@pytest.fixture(autouse=True)
def _still_answers(engine, tiny, adapters):
    yield
    made = adapters("llama")[0]
    (prompt,) = prompts_of(1)
    answers = ask(engine, [prompt, prompt], [lora_request(made, 1), None], tokens=3)
    assert tokens_of(answers[0]) == expected_tokens(tiny("llama").model, made.adapter, prompt, 3)
    assert tokens_of(answers[1]) == expected_tokens(tiny("llama").model, None, prompt, 3)


def _refused(engine, name: str, path, number: int, **options) -> str:
    from vllm.lora.request import LoRARequest

    with pytest.raises(RoadkitError) as caught:
        ask(engine, prompts_of(1), [LoRARequest(name, number, str(path), **options)])
    return str(caught.value)


def test_corrupt_adapter_is_refused(engine, adapters, tmp_path):
    shutil.copytree(adapters("llama")[0].path, tmp_path / "bad")
    weights = tmp_path / "bad" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "truncated or corrupt" in _refused(engine, "bad", tmp_path / "bad", 100)
    assert "no such directory" in _refused(engine, "none", tmp_path / "none", 101)


def test_lora_adapter_is_refused_with_a_reason(engine, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert "peft_type is 'LORA', not 'ROAD'" in _refused(engine, "lora", tmp_path, 102)


@pytest.mark.parametrize(
    ("layer", "width", "group_size", "message"),
    [
        ("model.layers.0.self_attn.q_proj", 512, 64, "adapter is 512 wide, layer 256"),
        ("model.layers.0.self_attn.q_prog", 256, 64, "no linear layer 'model.layers.0.self_attn.q_prog'; did you mean"),
        ("model.layers.7.self_attn.q_proj", 256, 64, "no linear layer"),
        ("model.layers.0.self_attn.q_proj", 256, 32, "group_size is 32, the engine was told of [64, 2]"),
        ("model.embed_tokens", 256, 64, "is an embedding or an output head"),
        ("lm_head", 256, 64, "is an embedding or an output head"),
    ],
)
def test_adapter_that_does_not_fit_is_refused_by_name(engine, tmp_path, layer, width, group_size, message):
    parameters = {layer: (torch.zeros(width // 2), torch.ones(width // 2))}
    Adapter.from_parameters(parameters, variant="road_1", group_size=group_size).save(tmp_path / "a")
    assert message in _refused(engine, "misfit", tmp_path / "a", 103)


def test_whole_modules_are_refused_by_name(engine, tmp_path, adapters):
    made = adapters("llama")[0]
    Adapter.from_parameters(
        made.adapter.parameters, variant="road_1", group_size=2, heads={"lm_head": {"weight": torch.zeros(256, 256)}}
    ).save(tmp_path / "a")
    assert "whole module lm_head" in _refused(engine, "heads", tmp_path / "a", 104)


def test_swapping_in_place_and_sharing_an_id_are_refused(engine, adapters):
    one, other = adapters("llama")[:2]
    assert "prefix cache" in _refused(engine, one.name, one.path, 1, load_inplace=True)
    ask(engine, prompts_of(1), [lora_request(one, 1)], tokens=1)
    assert "an id of its own" in _refused(engine, other.name, other.path, 1)


def test_changed_folder_is_refused_under_the_old_name(engine, adapters, make_adapter, tiny, tmp_path):
    """vLLM's prefix cache knows (name, path) only: blocks of the old version must not serve the new one."""
    old, new = make_adapter(tiny("llama").model, seed=31), make_adapter(tiny("llama").model, seed=32)
    shutil.copytree(old.path, tmp_path / "a")
    request = lora_request(old._replace(path=str(tmp_path / "a")), 110)
    ask(engine, prompts_of(1), [request], tokens=2)
    engine.llm_engine.remove_lora(110)
    shutil.rmtree(tmp_path / "a")
    shutil.copytree(new.path, tmp_path / "a")
    assert "has changed since" in _refused(engine, old.name, tmp_path / "a", 111)


def test_removed_adapter_serves_what_was_accepted(engine, adapters, tiny):
    from vllm import SamplingParams

    made = adapters("llama")[1]
    (prompt,) = prompts_of(1)
    core = engine.llm_engine
    parameters = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, detokenize=False)
    core.add_request("running", {"prompt_token_ids": prompt}, parameters, lora_request=lora_request(made, 120))
    core.step()
    assert core.remove_lora(120)
    assert 120 not in core.list_loras()
    answer = None
    while core.has_unfinished_requests():
        answer = next((output for output in core.step() if output.finished), answer)
    assert tokens_of(answer) == expected_tokens(tiny("llama").model, made.adapter, prompt, 6)


def test_adapter_that_vanishes_after_acceptance_harms_only_itself(engine, adapters, make_adapter, tiny, tmp_path):
    """Accepted, pushed out of memory by others, then deleted: its answer is no one else's, and the engine lives."""
    made = make_adapter(tiny("llama").model, seed=40)
    shutil.copytree(made.path, tmp_path / "a")
    request = lora_request(made._replace(path=str(tmp_path / "a")), 130)
    (prompt,) = prompts_of(1)
    expected = expected_tokens(tiny("llama").model, made.adapter, prompt, 3)
    assert tokens_of(ask(engine, [prompt], [request], tokens=3)[0]) == expected
    others = [lora_request(each, 131 + i) for i, each in enumerate(adapters("llama")[2:5])]
    ask(engine, prompts_of(3), others, tokens=1)
    shutil.rmtree(tmp_path / "a")
    other = adapters("llama")[2]
    longer = [*prompt, 9, 9]
    answers = ask(engine, [longer, longer], [request, others[0]], tokens=3)
    assert tokens_of(answers[1]) == expected_tokens(tiny("llama").model, other.adapter, longer, 3)
    assert tokens_of(answers[0]) not in (tokens_of(answers[1]), expected_tokens(tiny("llama").model, None, longer, 3))
