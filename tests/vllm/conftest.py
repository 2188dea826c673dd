"""The plugin's tests: real vLLM engines on tiny random models, in this process and without compilation unless it is
what is tested. All carry the marker `vllm`.

    def test_x(serve, tiny, adapters): llm = serve(tiny("llama"), max_loras=4)
"""

from __future__ import annotations

import os

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # before vLLM is imported: the engine in this process
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_USAGE_STATS", "0")
os.environ["VLLM_DO_NOT_TRACK"] = "1"
# Threads bound to cores wait for each other at every layer: on a busy machine that turns seconds into minutes. And two
# ranks on one NUMA node start only unbound.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from roadkit.adapter import Adapter
from roadkit.modules import linear_layers, width_of
from roadkit.rotation import num_parameters
from tests.vllm.tiny import Made, save_tokenizer, started

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # vLLM and what it imports warn of their own affairs


class Tiny(NamedTuple):
    """A saved tiny model: its folder, and the same weights in transformers."""

    path: str
    model: nn.Module


@pytest.fixture(scope="session")
def tiny(tiny_llama, tiny_qwen, tmp_path_factory) -> Callable[..., Tiny]:
    """`tiny("llama")` or `tiny("qwen")`, 128 wide with 256 tokens; saved once."""
    made: dict[str, Tiny] = {}

    def make(kind: str) -> Tiny:
        if kind not in made:
            build = {"llama": tiny_llama, "qwen": tiny_qwen}[kind]
            model = build(hidden_size=256, num_attention_heads=4, num_key_value_heads=2, intermediate_size=256)
            folder = tmp_path_factory.mktemp(kind)
            model.save_pretrained(folder)
            save_tokenizer(folder)
            made[kind] = Tiny(str(folder), model)
        return made[kind]

    return make


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory) -> Callable[..., Made]:
    """`make_adapter(model, "road_2", 64, seed=1)`: random angles and scales on every linear layer, saved."""

    def make(model: nn.Module, variant: str = "road_1", group_size: int = 64, seed: int = 0, only: str = "") -> Made:
        generator = torch.Generator().manual_seed(seed)
        parameters = {}
        for name, module in linear_layers(model).items():
            count = num_parameters(variant, width_of(module) or 0)
            theta = 0.4 * torch.randn(count, generator=generator)
            alpha = 1 + 0.1 * torch.randn(count, generator=generator)
            if only in name:
                parameters[name] = (theta, alpha)
        adapter = Adapter.from_parameters(parameters, variant=variant, group_size=group_size)
        path = tmp_path_factory.mktemp(f"{variant}-{group_size}-{seed}-") / "adapter"
        adapter.save(path)
        return Made(f"{variant}-{group_size}-{seed}", str(path), adapter)

    return make


@pytest.fixture(scope="session")
def adapters(tiny, make_adapter) -> Callable[[str], list[Made]]:
    """Every variant with both group sizes, on one tiny model; made once."""
    made: dict[str, list[Made]] = {}

    def make(kind: str) -> list[Made]:
        if kind not in made:
            kinds = [(variant, size) for variant in ("road_1", "road_2", "road_4") for size in (2, 64)]
            made[kind] = [make_adapter(tiny(kind).model, *each, seed=i) for i, each in enumerate(kinds)]
        return made[kind]

    return make


@pytest.fixture
def serve() -> Iterator[Callable[..., Any]]:
    """`serve(path, **options)` → `vllm.LLM`, ended with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda path, **options: stack.enter_context(started(path, **options))
