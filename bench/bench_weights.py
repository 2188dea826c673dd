"""What the stored weights change: float32, bfloat16 and int8, in speed, memory and closeness to float32."""

import statistics

import torch
from bench_load import resident_mb
from bench_mixed import engine_rate, requests

from roadkit import models
from roadkit.engine.engine import Engine
from roadkit.engine.request import Request

TEXT = (
    "The lighthouse stood at the end of the pier, and every evening its keeper climbed the hundred steps to the lamp."
)


def run(rounds: int = 5) -> dict:
    """Tokens per second at 1 and 8 requests, megabytes, and the mean log-probability of a text, for each type."""
    engines, table = {}, {}
    for weights in ("float32", "bfloat16", "int8"):
        before = resident_mb()
        engines[weights] = Engine.from_pretrained("smollm2", weights=weights)
        packed = sum(p.packed.nbytes for p in engines[weights].runner.packed.values())
        table[weights] = {"packed_mb": packed / 1e6, "resident_mb": resident_mb() - before}
    speeds: dict = {weights: {1: [], 8: []} for weights in engines}
    for i in range(rounds + 1):
        for weights, engine in engines.items():
            for count in (1, 8):
                rate = engine_rate(engine, requests(count, adapters=False))
                if i:
                    speeds[weights][count].append(rate)
    for weights, engine in engines.items():
        (scored,) = engine.generate([Request(prompt=TEXT, max_tokens=1, prompt_logprobs=0)])
        logprobs = [entry.logprob for entry in scored.prompt_logprobs or [] if entry is not None]
        table[weights] |= {f"tokens_per_second_{count}": statistics.median(speeds[weights][count]) for count in (1, 8)}
        table[weights]["mean_logprob"] = statistics.mean(logprobs)
    return {"weights": table, "float32_model_mb": float32_mb()}


def float32_mb() -> float:
    model = models.load_causal("smollm2")
    return sum(p.numel() for p in model.parameters()) * torch.float32.itemsize / 1e6
