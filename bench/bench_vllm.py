"""vLLM with RoAd adapters against plain vLLM and against vLLM's own LoRA, all in one run.

    python bench/bench_vllm.py [--model smollm2] [--rounds 5] [--tokens 64]        # last line: JSON

Three engines live side by side, each in a process of its own: `plain` (no adapter support), `road` (this plugin, 32
slots) and `lora` (vLLM's, rank 8, 8 slots). They take turns, one measurement each in every round, and a ratio is taken
within its round, so that a busy machine slows both sides of it. Start-up is measured before, one engine after another.
Where llama-cpp-python is installed, llama.cpp answers the same 8 requests one at a time, without an adapter. `--client`
starts `plain` and `road` as servers instead, and `vllm bench serve` asks them (vllm_client.py).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
from pathlib import Path

from vllm_client import measure_servers
from vllm_worker import Worker, write_adapters

ENGINES = ("plain", "road", "lora")
# name of a measurement → engine, requests in the batch, which adapters they carry
MEASURED = {
    "plain8": ("plain", 8, None),
    "road8": ("road", 8, "distinct"),
    "base_on_road8": ("road", 8, None),
    "road1": ("road", 8, "one"),
    "lora8": ("lora", 8, "distinct"),
    "base_on_lora8": ("lora", 8, None),
    "plain32": ("plain", 32, None),
    "road32": ("road", 32, "distinct"),
    "llama_cpp_one_at_a_time": ("llama.cpp", 8, None),
}
RATIOS = {
    "road8_over_plain": ("road8", "plain8"),
    "road32_over_plain": ("road32", "plain32"),
    "base_on_road_over_plain": ("base_on_road8", "plain8"),
    "road8_over_lora8": ("road8", "lora8"),
    "road1_over_plain": ("road1", "plain8"),
    "lora8_over_plain": ("lora8", "plain8"),
    "base_on_lora_over_plain": ("base_on_lora8", "plain8"),
    "road8_over_llama_cpp": ("road8", "llama_cpp_one_at_a_time"),
}
TARGETS = {
    "road8_over_plain": 0.95,
    "road32_over_plain": 0.95,
    "base_on_road_over_plain": 0.95,
    "road8_over_lora8": 3.0,
}


def run(
    *,
    model: str = "smollm2",
    rounds: int = 5,
    tokens: int = 64,
    dtype: str = "float32",
    group_size: int = 64,
    engines: tuple[str, ...] = ENGINES,
    eager: bool = False,
    starts: int = 1,
    batches: tuple[int, ...] = (8, 32),
) -> dict:
    """Measure. → tokens per second (median, least, most) of each row, ratios within rounds, seconds to start.

    starts  how often to start plain and road, in turn, each with an empty compilation cache; the last of each stays
    """
    from roadkit.models import resolve

    path, absent = resolve(model), _llama_cpp_absent(model)
    if not absent:
        engines = (*engines, "llama.cpp")
    with tempfile.TemporaryDirectory(prefix="roadkit-bench-") as folder:
        write_adapters(path, Path(folder), group_size)
        begun: dict[str, list[float]] = {engine: [] for engine in engines}
        workers: dict[str, Worker] = {}
        try:
            for turn in range(starts):
                for engine in engines:
                    if turn and engine not in ("plain", "road"):
                        continue
                    if engine in workers:
                        workers.pop(engine).close()
                    worker = Worker(
                        engine, path, folder, dtype=dtype, tokens=tokens, group_size=group_size, eager=eager
                    )
                    workers[engine] = worker
                    begun[engine].append(worker.start_s)
                    print(f"{engine} started in {worker.start_s:.0f} s", file=sys.stderr, flush=True)
            rows = {name: row for name, row in MEASURED.items() if row[0] in engines and row[1] in batches}
            for engine, requests, adapters in rows.values():  # once unmeasured: pages, kernels, adapters into the bank
                workers[engine].measure(requests, adapters)
            speeds = []
            for i in range(rounds):
                speeds.append({name: workers[row[0]].measure(row[1], row[2]) for name, row in rows.items()})
                latest = {name: round(speed, 1) for name, speed in speeds[-1].items()}
                print(f"round {i + 1} of {rounds}: {latest}", file=sys.stderr, flush=True)
        finally:
            for worker in workers.values():
                worker.close()
    result: dict = {"bench": "vllm", "model": model, "dtype": dtype, "tokens": tokens, "rounds": rounds, "eager": eager}
    result["llama_cpp"] = absent or "Q4_1, its own kernels, one request after another"
    result["tok_s"] = {name: _summary([speed[name] for speed in speeds], 1) for name in rows}
    result["start_s"] = {engine: [round(second, 1) for second in seconds] for engine, seconds in begun.items()}
    for ratio, (over, under) in RATIOS.items():
        if over in rows and under in rows:
            values = _summary([speed[over] / speed[under] for speed in speeds], 3)
            result[ratio] = values["median"]
            result[f"{ratio}_spread"] = [values["min"], values["max"]]
    if {"plain", "road"} <= set(engines):
        result["road_start_over_plain"] = round(statistics.median(begun["road"]) / statistics.median(begun["plain"]), 3)
    result["targets"] = {name: value for name, value in TARGETS.items() if name in result}
    result["reached"] = {name: result[name] >= value for name, value in TARGETS.items() if name in result}
    return result


def _llama_cpp_absent(model: str) -> str:
    """Why llama.cpp is not measured, '' where it can be."""
    if importlib.util.find_spec("llama_cpp") is None:
        return "absent: llama-cpp-python is not installed"
    return "" if model == "smollm2" else f"absent: there is no GGUF file of {model}"


def _summary(values: list[float], digits: int) -> dict[str, float]:
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {key: round(value, digits) for key, value in found.items()}


def _table(result: dict) -> str:
    lines = [f"{'':>16} {'tok/s':>8} {'least':>8} {'most':>8}"]
    for name, row in result["tok_s"].items():
        lines.append(f"{name:>16} {row['median']:>8} {row['min']:>8} {row['max']:>8}")
    for ratio in RATIOS:
        if ratio in result:
            target = f"   aim ≥ {TARGETS[ratio]}" if ratio in TARGETS else ""
            lines.append(f"{ratio:>26} {result[ratio]:>7} {result[f'{ratio}_spread']}{target}")
    lines.append(f"seconds to start: {result['start_s']}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--engines", default=",".join(ENGINES), help="leave one out to save its start-up")
    parser.add_argument(
        "--starts", type=int, default=1, help="start plain and road this often, for road_start_over_plain"
    )
    parser.add_argument("--batches", default="8,32", help="requests at once")
    parser.add_argument("--eager", action="store_true", help="no compilation: to check that the benchmark runs")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    parser.add_argument("--client", action="store_true", help="measure servers with `vllm bench serve`")
    arguments = parser.parse_args()
    if arguments.client:
        result = measure_servers(
            model=arguments.model,
            rounds=arguments.rounds,
            tokens=arguments.tokens,
            dtype=arguments.dtype,
            eager=arguments.eager,
        )
        print(json.dumps(result))
        return
    result = run(
        model=arguments.model,
        rounds=arguments.rounds,
        tokens=arguments.tokens,
        dtype=arguments.dtype,
        group_size=arguments.group_size,
        engines=tuple(arguments.engines.split(",")),
        eager=arguments.eager,
        starts=arguments.starts,
        batches=tuple(map(int, arguments.batches.split(","))),
    )
    if not arguments.json:
        print(_table(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
