"""Figure 4 of the paper: LoRA unmerged over its rank at batch 1; eight different adapters over the tokens generated."""

from bench_load import random_adapter
from bench_mixed import engine_rate, peft_rate, peft_sides, requests
from harness import DEVICE, over, summary, turns
from peft import LoraConfig, get_peft_model

from roadkit import models
from roadkit.engine.engine import Engine

RANKS = (1, 2, 4, 8, 16)
LENGTHS = (32, 64, 256) if DEVICE == "cpu" else (128, 256, 512, 1024, 2048)  # the paper: 256 to 4096
PEER_LENGTHS = (32, 64) if DEVICE == "cpu" else LENGTHS


def run(rounds: int = 3) -> dict:
    """Tokens per second, and ratios within a round.

    left   batch 1: PEFT's LoRA kept apart at every rank over the same model merged; an adapter in the engine over none
    right  8 requests with 8 adapters: the engine's RoAd, PEFT's mixed LoRA r=8 and mixed RoAd; peers on the CPU up to 64 tokens
    """
    base = models.load_causal("smollm2", device=DEVICE)
    adapters = {f"a{i}": random_adapter(base, seed=i) for i in range(8)}
    engine = Engine.from_pretrained("smollm2", adapters=adapters, max_batch=8)
    left = turns(left_sides(base, engine), rounds=rounds)
    right: dict[str, list[float]] = {}
    for length in LENGTHS:
        sides = {"roadkit road": lambda length=length: engine_rate(engine, requests(8, adapters=True, tokens=length))}
        if length in PEER_LENGTHS:
            sides |= {
                name.removesuffix(" mixed_8"): side
                for name, side in peft_sides(base, tokens=length).items()
                if name.startswith("peft")
            }
        right |= {f"{name}, {length} tokens": rates for name, rates in turns(sides, rounds=rounds).items()}
    figures = {f"unmerged_over_merged_rank_{rank}": over(left, f"lora rank {rank}", "merged") for rank in RANKS}
    figures["road_over_no_adapter_batch_1"] = over(left, "roadkit road", "roadkit without")
    for length in PEER_LENGTHS:
        for peer in ("peft lora", "peft road"):
            key = f"ours_over_{peer.replace(' ', '_')}_{length}_tokens"
            figures[key] = over(right, f"roadkit road, {length} tokens", f"{peer}, {length} tokens")
    rates = {"left": left, "right": right}
    told = {half: {name: summary(values) for name, values in found.items()} for half, found in rates.items()}
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
