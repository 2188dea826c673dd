"""One training step of each method against its floor: a frozen model, gradient through activations only.

    python bench/bench_train.py [--model smollm2] [--rounds 5] [--methods road_1,lora]     # last line: JSON

Time: all methods stand on one copy of the weights in one process and take turns, a step each in every round, with a
floor step before and after it to which its ratio is taken, so that a busy machine slows both. Memory: a process for
each method; kept are the storages that live after the forward pass and did not before it, whether autograd saved them
or a function hung them on its context, each counted once.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from peft import BOFTConfig, LoraConfig, OFTConfig, PeftConfig, RoadConfig, get_peft_model
from transformers import PreTrainedModel

from roadkit.models import load_causal
from roadkit.peft_tuner import disable_peft, enable_peft

CONFIGS = {
    "road_1": lambda: RoadConfig(variant="road_1", target_modules="all-linear"),
    "road_2": lambda: RoadConfig(variant="road_2", target_modules="all-linear"),
    "road_4": lambda: RoadConfig(variant="road_4", target_modules="all-linear"),
    "peft_road_1": lambda: RoadConfig(variant="road_1", target_modules="all-linear"),
    "lora_8": lambda: LoraConfig(r=8, target_modules="all-linear"),
    "oft_32": lambda: OFTConfig(oft_block_size=32, target_modules="all-linear", use_cayley_neumann=False),
    "oft_2": lambda: OFTConfig(oft_block_size=2, target_modules="all-linear", use_cayley_neumann=False),
    "boft": lambda: BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=2, target_modules="all-linear"),
}
METHODS = ("floor", *CONFIGS)
TARGETS = {"road_1": (1.10, 1.25), "road_2": (1.15, 1.6), "road_4": (1.15, 1.6)}  # step, kept; both over the floor


def run(
    *, model: str = "smollm2", batch: int = 4, tokens: int = 128, rounds: int = 5, methods: tuple[str, ...] = METHODS
) -> dict:
    """Measure `methods` (the floor always first). → one row a method: seconds, ratios to the floor, MB (10^6)."""
    methods = ("floor", *(method for method in methods if method != "floor"))
    rows = {method: _measure_apart(method, model, batch, tokens) for method in methods}
    base = _load(model)
    ids = _batch(base, batch, tokens)
    steps = {method: Step(_adapted(base, method), ids) for method in methods}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    ratios: dict[str, list[float]] = {method: [] for method in methods[1:]}
    for _ in range(rounds):
        seconds["floor"].append(steps["floor"]())
        for method in methods[1:]:
            seconds[method].append(steps[method]())
            seconds["floor"].append(steps["floor"]())
            ratios[method].append(seconds[method][-1] / statistics.mean(seconds["floor"][-2:]))
    for method, row in rows.items():
        row |= _summary("step_s", seconds[method]) | _summary("step_ratio", ratios.get(method, [1.0]))
        row["kept_ratio"] = round(row["kept_mb"] / rows["floor"]["kept_mb"], 3)
        if method in TARGETS:
            row["reached"] = [row["step_ratio"] <= TARGETS[method][0], row["kept_ratio"] <= TARGETS[method][1]]
    setting = {"model": model, "batch": batch, "tokens": tokens, "rounds": rounds, "threads": torch.get_num_threads()}
    return {"bench": "train", **setting, "targets": TARGETS, "methods": rows}


class Step:
    """One training step; calling it returns the seconds it took. The optimizer is the one that Trainer defaults to."""

    def __init__(self, model: torch.nn.Module, ids: torch.Tensor):
        self.model, self.ids = model.train(), ids
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.num_trainable = sum(parameter.numel() for parameter in trainable)
        self.optimizer = torch.optim.AdamW(trainable, lr=1e-3, fused=True) if trainable else None

    def forward(self) -> torch.Tensor:
        return self.model(input_ids=self.ids, labels=self.ids).loss

    def __call__(self) -> float:
        start = time.perf_counter()
        self.forward().backward()
        if self.optimizer:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return time.perf_counter() - start


def kept_bytes(step: Step) -> int:
    """Bytes that a forward pass leaves alive for the backward pass."""
    before = _live_storages()
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = step.forward()
    after = _live_storages() | saved
    loss.backward()
    return sum(size for address, size in after.items() if address not in before)


def _live_storages() -> dict[int, int]:
    gc.collect()
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


def _summary(name: str, values: list[float]) -> dict[str, float]:
    spread = {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}
    return {key: round(value, 3) for key, value in spread.items()}


def _load(model: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return load_causal(model).requires_grad_(False)


def _batch(model: PreTrainedModel, batch: int, tokens: int) -> torch.Tensor:
    return torch.randint(0, model.config.vocab_size - 1, (batch, tokens))


def _adapted(base: PreTrainedModel, method: str) -> torch.nn.Module:
    """The method on a copy of the model that shares the frozen weights."""
    model = copy.deepcopy(base, {id(parameter): parameter for parameter in base.parameters()})
    if method == "floor":
        model.enable_input_require_grads()
        return model
    config: PeftConfig = CONFIGS[method]()
    if method in TARGETS:
        enable_peft()
    try:
        return get_peft_model(model, config)
    finally:
        disable_peft()


def _measure_apart(method: str, model: str, batch: int, tokens: int) -> dict:
    options = {"memory": method, "model": model, "batch": batch, "tokens": tokens}
    command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in options.items())]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def _memory(method: str, model: str, batch: int, tokens: int) -> dict:
    base = _load(model)
    step = Step(_adapted(base, method), _batch(base, batch, tokens))
    step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    kept = kept_bytes(step)
    return {"trainable": step.num_trainable, "kept_mb": round(kept / 1e6, 1), "peak_rss_mb": round(peak / 1e6)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", type=lambda text: tuple(text.split(",")), default=METHODS)
    parser.add_argument("--memory", choices=METHODS, help="measure one method's memory in this process, nothing else")
    options = vars(parser.parse_args())
    method = options.pop("memory")
    if method:
        del options["rounds"], options["methods"]
        print(json.dumps(_memory(method, **options)))
        return
    result = run(**options)
    for name, row in result["methods"].items():
        print(f"{name:12} step {row['step_s']:7.3f} s, {row['step_ratio']:.3f} x floor; kept {row['kept_mb']:7.1f} MB, "
              f"{row['kept_ratio']:.3f} x; peak {row['peak_rss_mb']} MB; trains {row['trainable']:,}")  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
