"""Plain decoding, no adapters anywhere: the embedded engine against vLLM and transformers on the same processor."""

import tempfile
import time

import torch
from bench_mixed import engine_rate
from harness import over, summary
from vllm_worker import Worker

from roadkit import models
from roadkit.engine.engine import Engine
from roadkit.engine.request import Request

PROMPT, TOKENS, TRANSFORMERS_TOKENS = "Once upon a time there was a", 64, 24


def run(rounds: int = 7) -> dict:
    """Tokens per second at 1, 3, 5 and 8 running requests, the sides in turn; float32, vLLM with compilation."""
    engine = Engine.from_pretrained("smollm2")
    model, tokenizer = models.load_causal("smollm2"), models.load_tokenizer("smollm2")
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        peer = Worker(
            "plain", models.resolve("smollm2"), folder, dtype="float32", tokens=TOKENS, group_size=64, eager=False
        )
        try:
            for i in range(rounds + 1):
                for count in (1, 3, 5, 8):
                    asked = [Request(prompt=PROMPT, max_tokens=TOKENS, ignore_eos=True)] * count
                    measured = {
                        f"roadkit_{count}": engine_rate(engine, asked),
                        f"vllm_{count}": peer.measure(count, None),
                    }
                    if count == 8:
                        measured["transformers_8"] = generate_rate(model, tokenizer)
                    if i:
                        for name, rate in measured.items():
                            rates.setdefault(name, []).append(rate)
        finally:
            peer.close()
    figures = {f"roadkit_over_vllm_{n}": over(rates, f"roadkit_{n}", f"vllm_{n}") for n in (1, 3, 5, 8)}
    figures["roadkit_over_transformers_8"] = over(rates, "roadkit_8", "transformers_8")
    return {"tokens_per_second": {name: summary(values) for name, values in rates.items()}, **figures}


def generate_rate(model, tokenizer) -> float:
    """transformers' `generate` of a batch of 8."""
    inputs = tokenizer([PROMPT] * 8, return_tensors="pt")
    start = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            **inputs, max_new_tokens=TRANSFORMERS_TOKENS, min_new_tokens=TRANSFORMERS_TOKENS, do_sample=False
        )
    return 8 * TRANSFORMERS_TOKENS / (time.perf_counter() - start)
