"""Training many adapters in one run, beside as many runs one after another; the same rows a step for each."""

import json
import resource
import tempfile
import time
from pathlib import Path

from harness import over, summary

from roadkit import models, train
from roadkit.train import Recipe

ADAPTERS, LENGTHS = (2, 8, 32), (32, 128)


def run(
    rounds: int = 3, steps: int = 4, adapters: tuple[int, ...] = ADAPTERS, lengths: tuple[int, ...] = LENGTHS
) -> dict:
    """Examples per second, one row per adapter and step, between the first step's end and the last's.

    Preparation, the first step and saving are left out on both sides: they favour one run over many.
    """
    model, tokenizer = models.load_causal("smollm2"), models.load_tokenizer("smollm2")
    before = peak_mb()
    table = {}
    with tempfile.TemporaryDirectory() as folder:
        for length in lengths:
            for count in adapters:
                recipes = make_recipes(Path(folder), count, length, steps)
                rates: dict[str, list[float]] = {"many": [], "one by one": []}
                for i in range(rounds + 1):
                    measured = {
                        "many": seconds_a_step(train.run_many, recipes["many"], model, tokenizer),
                        "one by one": sum(
                            seconds_a_step(train.run, recipe, model, tokenizer) for recipe in recipes["one by one"]
                        ),
                    }
                    if i:
                        for name, seconds in measured.items():
                            rates[name].append(count / seconds)
                table[f"{count} adapters, {length} tokens"] = {
                    "many": summary(rates["many"])["median"],
                    "one_by_one": summary(rates["one by one"])["median"],
                    "ratio": over(rates, "many", "one by one"),
                }
    return {"examples_per_second": table, "peak_mb": {"base model loaded": before, "at the end": peak_mb()}}


def make_recipes(folder: Path, count: int, length: int, steps: int) -> dict:
    """The data of all adapters in one file, and of each in its own; every row of exactly `length` tokens."""
    tokenizer = models.load_tokenizer("smollm2")
    words = "the lighthouse keeper climbs a hundred steps to his lamp before it is dark at sea " * 20
    ids = tokenizer(words)["input_ids"][: length - 1]  # the end token follows
    text = tokenizer.decode(ids)
    rows = {f"a{i}": [{"adapter": f"a{i}", "text": text}] * (steps + 1) for i in range(count)}
    shared = {"model": "smollm2", "max_steps": steps + 1, "batch_size": 1, "max_length": length, "learning_rate": 1e-3}
    options = shared | {"chat_template": False, "warmup": 0.0}

    def write(name: str, rows: list[dict]) -> str:
        path = folder / f"{name}-{count}-{length}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    everything = write("all", [row for own in rows.values() for row in own])
    return {
        "many": Recipe(data=everything, output=str(folder / "many"), **options),
        "one by one": [
            Recipe(data=write(name, own), output=str(folder / "alone" / name), **options) for name, own in rows.items()
        ],
    }


def seconds_a_step(method, recipe: Recipe, model, tokenizer) -> float:
    ends: list[float] = []
    method(recipe, model=model, tokenizer=tokenizer, progress=lambda report: ends.append(time.perf_counter()))
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
