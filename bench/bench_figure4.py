"""Figure 4 of the paper: LoRA unmerged over its rank; eight different adapters over the tokens; 1 to 64 of them at once."""

import importlib.util
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench_load import random_adapter
from bench_mixed import PEFT_CONFIGS, engine_rate, peft_mixed_rate, peft_rate, peft_tuned, prompts, requests
from harness import DEVICE, over, summary, turns
from peft import LoraConfig, get_peft_model
from vllm_worker import Worker, write_adapters

from roadkit import models
from roadkit.engine.engine import Engine

RANKS = (1, 2, 4, 8, 16)
LENGTHS = (128, 256, 512, 1024, 2048)  # tokens generated; the paper: 256 to 4096
REQUESTS = (1, 2, 4, 8, 16, 32, 64)
PEER_LENGTHS, PEER_REQUESTS = (LENGTHS[:1], (1, 4, 16, 64)) if DEVICE == "cpu" else (LENGTHS, REQUESTS)
NEW_TOKENS = 16  # of every request, over their number


def run(rounds: int = 2) -> dict:
    """Tokens per second, and ratios within a round; on the CPU peers only at some places (`PEER_LENGTHS`, `PEER_REQUESTS`).

    left     batch 1: PEFT's LoRA kept apart at every rank over the same model merged; an adapter in the engine over none
    middle   8 requests with 8 adapters: the engine's RoAd, PEFT's mixed LoRA r=8 and mixed RoAd
    right    1 to 64 requests, each with its own adapter: these, and where vLLM is installed, on the CPU, its LoRA r=8 and
             roadkit's plugin
    """
    base = models.load_causal("smollm2", device=DEVICE)
    engine = _engine(base, 8)
    left = turns(left_sides(base, engine), rounds=rounds)
    tuned = {kind: peft_tuned(kind, max(REQUESTS)) for kind in PEFT_CONFIGS}
    middle = middle_rates(engine, tuned, rounds=rounds)
    del engine
    right = right_rates(_engine(base, max(REQUESTS)), tuned, rounds=rounds)
    figures = {f"unmerged_over_merged_rank_{rank}": over(left, f"lora rank {rank}", "merged") for rank in RANKS}
    figures["road_over_no_adapter_batch_1"] = over(left, "roadkit road", "roadkit without")
    for rates in (middle, right):
        for name in rates:
            side, _, place = name.partition(", ")
            if side != "roadkit road":
                figures[f"ours_over_{side}_{place}".replace(" ", "_")] = over(rates, f"roadkit road, {place}", name)
    panels = {"left": left, "middle": middle, "right": right}
    told = {panel: {name: summary(values) for name, values in rates.items()} for panel, rates in panels.items()}
    return {"tokens_per_second": told, **figures}


def left_sides(base, engine: Engine) -> dict:
    """One request: transformers' `generate` on the merged model and on LoRAs of every rank, and the engine's two."""
    sides = {"merged": lambda: peft_rate(base, 1)}
    for rank in RANKS:
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", init_lora_weights=False)
        tuned = get_peft_model(models.load_causal("smollm2", device=DEVICE), config).eval()
        sides[f"lora rank {rank}"] = lambda tuned=tuned: peft_rate(tuned, 1)
    for name, adapted in (("roadkit without", False), ("roadkit road", True)):
        sides[name] = lambda adapted=adapted: engine_rate(engine, requests(1, adapters=adapted, tokens=64))
    return sides


def middle_rates(engine: Engine, tuned: dict, *, rounds: int) -> dict[str, list[float]]:
    """Tokens per second of every side over the tokens that each of eight requests generates."""
    rates: dict[str, list[float]] = {}
    for length in LENGTHS:
        sides = {"roadkit road": partial(engine_rate, engine, requests(8, adapters=True, tokens=length))}
        if length in PEER_LENGTHS:
            sides |= {f"peft {kind}": partial(peft_mixed_rate, model, 8, length) for kind, model in tuned.items()}
        found = turns(sides, rounds=rounds, warm=length == LENGTHS[0])
        rates |= {f"{name}, {length} tokens": values for name, values in found.items()}
    return rates


def right_rates(engine: Engine, tuned: dict, *, rounds: int) -> dict[str, list[float]]:
    """Tokens per second of every side over the requests at once."""
    rates: dict[str, list[float]] = {}
    with ExitStack() as stack:
        workers = _vllm_workers(stack)
        for count in REQUESTS:
            asked = {name: requests(count, adapters=name == "road", tokens=NEW_TOKENS) for name in ("road", "without")}
            sides = {f"roadkit {name}": partial(engine_rate, engine, wanted) for name, wanted in asked.items()}
            if count in PEER_REQUESTS:
                sides |= {
                    f"peft {kind}": partial(peft_mixed_rate, model, count, NEW_TOKENS) for kind, model in tuned.items()
                }
                sides |= {
                    f"vllm {kind}": partial(worker.measure, count, "distinct", prompts(count))
                    for kind, worker in workers.items()
                }
            found = turns(sides, rounds=rounds)
            rates |= {f"{name}, {count} requests": values for name, values in found.items()}
    return rates


def _engine(base, count: int) -> Engine:
    adapters = {f"a{i}": random_adapter(base, seed=i) for i in range(count)}
    return Engine.from_pretrained("smollm2", adapters=adapters, max_batch=count, cache_gib=2.0)


def _vllm_workers(stack: ExitStack) -> dict[str, Worker]:
    """vLLM with as many adapters of either kind as there are requests, each engine in a process of its own."""
    if DEVICE != "cpu" or importlib.util.find_spec("vllm") is None:
        return {}
    folder, path = stack.enter_context(tempfile.TemporaryDirectory()), models.resolve("smollm2")
    write_adapters(path, Path(folder), group_size=64, roads=max(REQUESTS), loras=max(REQUESTS))
    workers = {}
    for kind in ("lora", "road"):
        workers[kind] = Worker(kind, path, folder, tokens=NEW_TOKENS, slots=max(REQUESTS))
        stack.callback(workers[kind].close)
    return workers
