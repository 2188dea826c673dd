"""Adapters on disk: reading and activating one on the 135M model, and the memory of a thousand registered ones."""

import gc
import shutil
import tempfile
import time
from pathlib import Path

import torch
from harness import summary

from roadkit import models, modules, rotation
from roadkit.adapter import Adapter
from roadkit.engine.bank import Bank


def run(rounds: int = 15) -> dict:
    model = models.load_causal("smollm2")
    with tempfile.TemporaryDirectory() as folder:
        for i in range(rounds + 1):
            random_adapter(model, seed=i).save(f"{folder}/a{i}")
        for i in range(rounds + 1, 1000):
            shutil.copytree(f"{folder}/a{i % (rounds + 1)}", f"{folder}/a{i}")
        bank = Bank(model, {"a0": f"{folder}/a0"}, slots=32)
        bank.release(bank.acquire(bank.parse("a0")))
        before = resident_mb()
        for i in range(1, 1000):
            bank.add(f"a{i}", f"{folder}/a{i}")
        registered = resident_mb()
        seconds = []
        for i in range(1, rounds + 1):
            start = time.perf_counter()
            row = bank.acquire(bank.parse(f"a{i}"))
            seconds.append(time.perf_counter() - start)
            bank.release(row)
        used = resident_mb()
    row_mb = 2 * 4 * sum(layer.width for layer in bank.layers.values()) / 1e6
    return {
        "seconds": {"load and activate": summary(seconds)},
        "load_and_activate_ms": 1e3 * summary(seconds)["median"],
        "row_mb": row_mb,
        "registering_999_mb": registered - before,
        "activating_mb": used - registered,
        "activated": rounds,
    }


def random_adapter(model, *, seed: int, variant: str = "road_1", group_size: int = 64, size: float = 0.02) -> Adapter:
    """An adapter on all linear layers with random angles and scales."""
    generator = torch.Generator().manual_seed(seed)
    parameters = {}
    for name, module in modules.linear_layers(model).items():
        count = rotation.num_parameters(variant, modules.width_of(module) or 0)
        theta, alpha = (size * torch.randn(count, generator=generator) for _ in range(2))
        parameters[name] = (theta, 1 + alpha)
    return Adapter.from_parameters(parameters, variant=variant, group_size=group_size)


def resident_mb() -> float:
    """Resident memory of this process, MB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6
