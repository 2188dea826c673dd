"""What the plugin's tests share: starting an engine, asking it, and what transformers and roadkit say to the same.

with started(path, max_loras=4) as llm: answers = ask(llm, prompts, [lora_request(made, 1), None])
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from roadkit.adapter import Adapter
from roadkit.modules import attached

VOCAB = 256
TOLERANCE = {  # the entries of tests/conftest.py
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.bfloat16: {"rtol": 3e-2, "atol": 2e-2},
}


class Made(NamedTuple):
    name: str
    path: str
    adapter: Adapter


def save_tokenizer(folder: Any) -> None:
    """One token a byte, and a chat template, beside a tiny model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    fast.save_pretrained(folder)


@contextlib.contextmanager
def started(path: str, **options: Any) -> Iterator[Any]:
    """A vLLM engine in this process, with RoAd for group sizes 64 and 2; ended with everything that it set up."""
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    from roadkit.vllm_plugin import register

    register()
    defaults: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 256,
        "block_size": 32,  # short enough for the prefix cache to work on short prompts
        "enforce_eager": True,
        "enable_lora": True,
        "max_loras": 8,
        "max_cpu_loras": 16,
        "skip_tokenizer_init": True,
        "max_logprobs": VOCAB,
        "logprobs_mode": "raw_logits",
        "seed": 0,
        "additional_config": {"roadkit": {"group_sizes": [64, 2]}},
    }
    llm = LLM(model=path, **defaults | options)
    try:
        yield llm
    finally:
        with contextlib.suppress(Exception):
            llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        torch._dynamo.reset()


@contextlib.contextmanager
def serving(
    command: Sequence[str], log: Path, ready: str, environment: Mapping[str, str] = os.environ
) -> Iterator[Any]:
    """A server in a process of its own, its engine in another, ended with the block. `ready`: an address to ask."""
    environment = {name: value for name, value in environment.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        while True:
            assert process.poll() is None, log.read_text()[-5000:]
            try:
                urllib.request.urlopen(ready, timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def lora_request(made: Made, number: int) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(made.name, number, made.path)


def ask(
    llm: Any, prompts: Sequence[list[int]], requests: Sequence[Any] | None, *, tokens: int = 10, prefill: bool = True
) -> list[Any]:
    """Greedy answers with the logits of every prompt (unless not `prefill`) and answer token.

    vLLM reads no cached block for a request that wants its prompt's logits: leave them out to use the prefix cache.
    """
    from vllm import SamplingParams

    parameters = SamplingParams(
        temperature=0,
        max_tokens=tokens,
        ignore_eos=True,
        detokenize=False,
        logprobs=VOCAB,
        prompt_logprobs=VOCAB if prefill else None,
    )
    given = [{"prompt_token_ids": prompt} for prompt in prompts]
    return llm.generate(given, parameters, lora_request=None if requests is None else list(requests), use_tqdm=False)


def tokens_of(answer: Any) -> list[int]:
    return list(answer.outputs[0].token_ids)


def logits_of(answer: Any) -> Tensor:
    """[prompt + answer - 1, vocab]: what followed each token but the last, prefill first (if it was asked for)."""
    rows = [*(answer.prompt_logprobs or [None])[1:], *answer.outputs[0].logprobs]
    return torch.tensor([[row[token].logprob for token in range(VOCAB)] for row in rows])


@torch.no_grad()
def expected_logits(model: nn.Module, adapter: Adapter | None, token_ids: list[int]) -> Tensor:
    """transformers and roadkit on one request alone, the same tokens."""
    with attached(model, adapter) if adapter is not None else contextlib.nullcontext():
        return model(torch.tensor([token_ids])).logits[0, :-1]


@torch.no_grad()
def expected_tokens(model: nn.Module, adapter: Adapter | None, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding in transformers, without a cache."""
    token_ids = list(prompt)
    with attached(model, adapter) if adapter is not None else contextlib.nullcontext():
        for _ in range(count):
            token_ids.append(int(model(torch.tensor([token_ids])).logits[0, -1].argmax()))
    return token_ids[len(prompt) :]


def assert_close(actual: Tensor, expected: Tensor, tolerance: dict[str, float]) -> None:
    """Within the tolerance table, relative to the largest logit: single logits near zero are sums of large terms."""
    allowed = tolerance["atol"] + tolerance["rtol"] * float(expected.abs().max())
    worst = float((actual.double() - expected.double()).abs().max())
    assert worst <= allowed, f"off by {worst:.3g}, at most {allowed:.3g} is allowed"


def prompts_of(count: int) -> list[list[int]]:
    """Different prompts of different lengths, 5 to 40 tokens."""
    return [[3 + (7 * i + 5 * j) % (VOCAB - 3) for j in range(5 + (11 * i) % 36)] for i in range(count)]
