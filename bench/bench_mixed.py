"""Decoding with a different adapter for every request, beside the plain model and beside PEFT's mixed batches."""

import time

import torch
from bench_load import random_adapter
from harness import DEVICE, over, summary, turns
from peft import LoraConfig, RoadConfig, get_peft_model

from roadkit import models
from roadkit.engine.engine import Engine
from roadkit.engine.request import Request

TOPICS = ("rivers", "trains", "bread", "the moon", "chess", "a lighthouse", "old maps", "winter")
NEW_TOKENS, PEER_TOKENS = 48, 16


def run(rounds: int = 5, peers: bool = True, batch_sizes: tuple[int, ...] = (1, 8, 64)) -> dict:
    """Tokens per second. plain: an engine without adapters; the ratios are medians over rounds."""
    base = models.load_causal("smollm2", device=DEVICE)
    adapters = {f"a{i}": random_adapter(base, seed=i) for i in range(max(batch_sizes))}
    plain = Engine.from_pretrained("smollm2", max_batch=max(batch_sizes))
    ours = Engine.from_pretrained("smollm2", adapters=adapters, max_batch=max(batch_sizes))
    sides = {}
    for count in batch_sizes:
        named, unnamed = requests(count, adapters=True), requests(count, adapters=False)
        sides[f"plain_{count}"] = lambda unnamed=unnamed: engine_rate(plain, unnamed)
        sides[f"mixed_{count}"] = lambda named=named: engine_rate(ours, named)
        sides[f"base_beside_adapters_{count}"] = lambda unnamed=unnamed: engine_rate(ours, unnamed)
    rates = turns(sides, rounds=rounds)
    figures: dict = {}
    for count in batch_sizes:
        for kind in ("mixed", "base_beside_adapters"):
            figures[f"{kind}_over_plain_{count}"] = over(rates, f"{kind}_{count}", f"plain_{count}")
    if peers:
        del plain
        peer_sides = peft_sides(base)
        peer_sides["roadkit mixed_8"] = lambda: engine_rate(ours, requests(8, adapters=True, tokens=PEER_TOKENS))
        peer_rates = turns(peer_sides, rounds=max(3, rounds // 2))
        for peer in ("peft road mixed_8", "peft lora mixed_8", "transformers generate_8"):
            figures[f"ours_over_{peer.replace(' ', '_')}"] = over(peer_rates, "roadkit mixed_8", peer)
        rates |= peer_rates
    return {"tokens_per_second": {name: summary(values) for name, values in rates.items()}, **figures}


def requests(count: int, *, adapters: bool, tokens: int = NEW_TOKENS) -> list[Request]:
    """`count` different prompts, each with its own adapter or none."""
    return [
        Request(prompt=prompt, adapter=f"a{i}" if adapters else None, max_tokens=tokens, ignore_eos=True)
        for i, prompt in enumerate(prompts(count))
    ]


def prompts(count: int) -> list[str]:
    return [f"Story number {i}, about {TOPICS[i % len(TOPICS)]}. Once upon a time" for i in range(count)]


def engine_rate(engine: Engine, asked: list[Request]) -> float:
    start = time.perf_counter()
    answers = engine.generate(asked)
    assert all(len(answer.token_ids) == request.max_tokens for answer, request in zip(answers, asked, strict=True))
    return sum(request.max_tokens for request in asked) / (time.perf_counter() - start)


PEFT_CONFIGS = {
    "road": lambda: RoadConfig(variant="road_1", target_modules="all-linear", init_weights=False),
    "lora": lambda: LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False),
}


def peft_sides(model, tokens: int = PEER_TOKENS) -> dict:
    """PEFT's own mixed batches of eight adapters (`adapter_names`), RoAd and LoRA r=8, and the base's `generate`."""
    sides = {"transformers generate_8": lambda: peft_rate(model, 8, tokens)}
    for kind in PEFT_CONFIGS:
        tuned = peft_tuned(kind, 8)
        sides[f"peft {kind} mixed_8"] = lambda tuned=tuned: peft_mixed_rate(tuned, 8, tokens)
    return sides


def peft_tuned(kind: str, count: int):
    """smollm2 with `count` random adapters a0, a1, … of a kind."""
    config = PEFT_CONFIGS[kind]
    tuned = get_peft_model(models.load_causal("smollm2", device=DEVICE), config(), adapter_name="a0")
    for i in range(1, count):
        tuned.add_adapter(f"a{i}", config())
    return tuned.eval()


def peft_mixed_rate(tuned, count: int, tokens: int = PEER_TOKENS) -> float:
    """Tokens per second of `count` prompts, each with its own adapter."""
    return peft_rate(tuned, count, tokens, adapter_names=[f"a{i}" for i in range(count)])


def peft_rate(model, count: int, tokens: int = PEER_TOKENS, **options) -> float:
    """Tokens per second of transformers' `generate`, greedy, for `count` prompts; options go to it."""
    tokenizer = models.load_tokenizer("smollm2")
    tokenizer.padding_side = "left"
    inputs = tokenizer(prompts(count), return_tensors="pt", padding=True).to(model.device)
    start = time.perf_counter()
    with torch.no_grad():
        model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, **options)
    return count * tokens / (time.perf_counter() - start)
