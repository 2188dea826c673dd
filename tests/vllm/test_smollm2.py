"""The real model, compiled: three adapters and the base in one batch give the tokens that transformers and roadkit give."""

import pytest
import torch

from roadkit import models
from roadkit.adapter import Adapter
from roadkit.modules import linear_layers, width_of
from tests.vllm.tiny import Made, expected_tokens, lora_request, started

PROMPTS = ["Once upon a time", "The capital of France is", "def add(a, b):", "Water boils at"]


@pytest.mark.model
@pytest.mark.slow
def test_mixed_batch_on_smollm2(tmp_path):
    from vllm import SamplingParams

    base, tokenizer = models.load_causal("smollm2"), models.load_tokenizer("smollm2")
    made: list[Made | None] = [None]
    for i in range(3):
        generator = torch.Generator().manual_seed(i)
        parameters = {}
        for name, module in linear_layers(base).items():
            count = (width_of(module) or 0) // 2
            parameters[name] = (0.05 * torch.randn(count, generator=generator), torch.ones(count))
        adapter = Adapter.from_parameters(parameters, variant="road_1", group_size=64)
        adapter.save(tmp_path / f"a{i}")
        made.append(Made(f"a{i}", str(tmp_path / f"a{i}"), adapter))
    ids = [tokenizer(text)["input_ids"] for text in PROMPTS]
    options = {"max_logprobs": 20, "additional_config": {"roadkit": {"group_sizes": [64]}}}
    with started(models.resolve("smollm2"), enforce_eager=False, **options) as llm:
        requests = [lora_request(each, i) if each else None for i, each in enumerate(made)]
        parameters = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": prompt} for prompt in ids]
        answers = llm.generate(prompts, parameters, lora_request=requests, use_tqdm=False)
    for prompt, each, answer in zip(ids, made, answers, strict=True):
        expected = expected_tokens(base, each.adapter if each else None, prompt, 8)
        assert list(answer.outputs[0].token_ids) == expected
