"""Computing a prompt: the engine's first token against transformers' forward pass, and the time to be ready."""

import subprocess
import sys
import time

import torch
from harness import over, summary

from roadkit import models
from roadkit.engine.engine import Engine
from roadkit.engine.request import Request

READY = """
import time
start = time.perf_counter()
from roadkit import Engine, Request
engine = Engine.from_pretrained("smollm2")
engine.generate([Request(prompt="Hi", max_tokens=1)])
print(time.perf_counter() - start)
"""


def run(rounds: int = 7) -> dict:
    """Tokens per second of prompts of 128, 512 and 2048 tokens; seconds from import to the first token."""
    model = models.load_causal("smollm2")
    engine = Engine.from_pretrained("smollm2")
    rates: dict[str, list[float]] = {}
    for i in range(rounds + 1):
        for length in (128, 512, 2048):
            ids = [(7 * j + i + length) % 40000 + 20 for j in range(length)]  # new every time: no prefix is reused
            start = time.perf_counter()
            with torch.inference_mode():
                model(torch.tensor([ids]), logits_to_keep=1, use_cache=True)
            middle = time.perf_counter()
            engine.generate([Request(prompt=ids, max_tokens=1)])
            end = time.perf_counter()
            if i:
                rates.setdefault(f"transformers_{length}", []).append(length / (middle - start))
                rates.setdefault(f"roadkit_{length}", []).append(length / (end - middle))
    figures = {
        f"roadkit_over_transformers_{n}": over(rates, f"roadkit_{n}", f"transformers_{n}") for n in (128, 512, 2048)
    }
    ready = [
        float(subprocess.run([sys.executable, "-c", READY], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    return {
        "tokens_per_second": {name: summary(values) for name, values in rates.items()},
        **figures,
        "ready_s": summary(ready)["median"],
    }
