"""Every request of a mixed batch in vLLM gives what transformers and roadkit give for it alone."""

import copy

import pytest
import torch

from tests.vllm.tiny import (
    TOLERANCE,
    ask,
    assert_close,
    expected_logits,
    logits_of,
    lora_request,
    prompts_of,
    tokens_of,
)


# llama has no biases, qwen has them on q, k and v; compiling takes longest, so it is done once, for both sorts of layer
@pytest.mark.parametrize(
    ("kind", "eager"), [("llama", True), ("qwen", True), ("qwen", False)], ids=["unbiased", "biased", "compiled"]
)
def test_mixed_batch_equals_each_request_alone(serve, tiny, adapters, kind, eager):
    llm, base, made = serve(tiny(kind).path, enforce_eager=eager), tiny(kind).model, adapters(kind)
    mode = llm.llm_engine.vllm_config.compilation_config.mode
    assert bool(mode) is not eager, f"compilation mode is {mode}"  # vLLM's LoRA switches it off on the CPU
    carried = [*made, None, made[0]]
    requests = [lora_request(each, i + 1) if each else None for i, each in enumerate(made)]
    requests += [None, requests[0]]
    prompts = prompts_of(len(carried))
    for prefill in (True, False):  # the second time from the prefix cache
        for prompt, each, answer in zip(prompts, carried, ask(llm, prompts, requests, prefill=prefill), strict=True):
            expected = expected_logits(base, each.adapter if each else None, prompt + tokens_of(answer))
            assert tokens_of(answer) == expected[len(prompt) - 1 :].argmax(dim=-1).tolist()
            logits = logits_of(answer)
            assert_close(logits, expected[-len(logits) :], TOLERANCE[torch.float32])


def test_bfloat16_loses_no_more_than_transformers_does(serve, tiny, adapters):
    llm, made = serve(tiny("llama").path, dtype="bfloat16"), adapters("llama")
    base = tiny("llama").model
    halved = copy.deepcopy(base).bfloat16()
    requests = [*(lora_request(each, i + 1) for i, each in enumerate(made)), None]
    prompts = prompts_of(len(requests))
    for prompt, each, answer in zip(prompts, [*made, None], ask(llm, prompts, requests, tokens=4), strict=True):
        adapter = each.adapter if each else None
        exact = expected_logits(base, adapter, prompt + tokens_of(answer))
        lost = (expected_logits(halved, adapter, prompt + tokens_of(answer)) - exact).abs()
        ours = (logits_of(answer) - exact).abs()
        assert ours.mean() <= 1.5 * lost.mean() and ours.max() <= 2 * lost.max(), (ours.mean(), lost.mean())


def test_chunked_prefill_and_more_adapters_than_slots(serve, tiny, adapters):
    llm, base, made = (
        serve(tiny("llama").path, max_num_batched_tokens=16, max_loras=2),
        tiny("llama").model,
        adapters("llama"),
    )
    requests = [lora_request(each, i + 1) for i, each in enumerate(made)]
    prompts = prompts_of(len(made))
    for _ in range(2):
        for prompt, each, answer in zip(prompts, made, ask(llm, prompts, requests, tokens=4), strict=True):
            expected = expected_logits(base, each.adapter, prompt + tokens_of(answer))
            assert_close(logits_of(answer)[-4:], expected[-4:], TOLERANCE[torch.float32])


def test_adapter_of_some_layers_leaves_the_others(serve, tiny, make_adapter):
    base = tiny("qwen").model
    made = [
        make_adapter(base, "road_1", 64, seed=20 + i, only=only)
        for i, only in enumerate(["k_proj", "up_proj", "layers.1.mlp"])
    ]
    llm = serve(tiny("qwen").path)
    prompts = prompts_of(len(made))
    answers = ask(llm, prompts, [lora_request(each, i + 1) for i, each in enumerate(made)])
    for prompt, each, answer in zip(prompts, made, answers, strict=True):
        expected = expected_logits(base, each.adapter, prompt + tokens_of(answer))
        assert_close(logits_of(answer), expected, TOLERANCE[torch.float32])
