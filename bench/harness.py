"""How every benchmark measures: the sides in turn, round after round, so that a drifting machine hits all alike.

rows = measure({"ours": f, "peer": g}, rounds=7)      # seconds: {"ours": {"median": …, "min": …, "max": …}, …}
report({"rows": rows, "ratio": ratio(rows, "peer", "ours")})
rates = turns({"ours": f, "peer": g}, rounds=7)       # what f and g return: {"ours": […], …}
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping

# `roadkit bench --device cuda` sets it. Both sides must stand on one device, and engines go to a GPU by themselves.
DEVICE = os.environ.get("ROADKIT_BENCH_DEVICE", "cpu")
if DEVICE == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def measure(sides: Mapping[str, Callable[[], object]], *, rounds: int, repeat: int = 1) -> dict[str, dict[str, float]]:
    """Seconds a call of each side: median, minimum and maximum over `rounds`, after one call to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for call in sides.values():
        call()
    for _ in range(rounds):
        for name, call in sides.items():
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            seconds[name].append((time.perf_counter() - start) / repeat)
    return {name: summary(values) for name, values in seconds.items()}


def turns(sides: dict[str, Callable[[], float]], *, rounds: int, warm: bool = True) -> dict[str, list[float]]:
    """What each side returns (tokens per second, say), in turn, round after round; where `warm`, a first round warms up."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds + warm):
        for name, side in sides.items():
            value = side()
            if i >= warm:
                values[name].append(value)
    return values


def over(values: dict[str, list[float]], one: str, other: str) -> float:
    """The median over rounds of one/other, each pair measured in the same round."""
    return round(statistics.median(a / b for a, b in zip(values[one], values[other], strict=True)), 3)


def summary(values: list[float]) -> dict[str, float]:
    """Median, minimum, maximum, and the values in order of measurement, for ratios round by round."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": values}  # type: ignore[dict-item]


def ratio(rows: dict, one: str, other: str) -> float:
    """`over` of what `measure` returned."""
    return over({name: row["values"] for name, row in rows.items()}, one, other)


def machine() -> dict[str, object]:
    """What was measured on."""
    import torch

    return {
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "device": "cpu" if DEVICE == "cpu" else torch.cuda.get_device_name(0),
    }


def report(figures: dict, *, quiet: bool = False) -> None:
    """Print figures line by line, then all of them as one JSON object on the last line."""
    figures = {**figures, "machine": machine()}
    if not quiet:
        for key, value in figures.items():
            if isinstance(value, dict) and all(isinstance(row, dict) for row in value.values()):
                print(key)
                for name, row in value.items():
                    print("  ", f"{name:28}", *(f"{k}={_short(v)}" for k, v in row.items() if k != "values"))
            else:
                print(f"{key}: {_short(value)}")
    print(json.dumps(_without_values(figures)))


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def _without_values(value):
    if isinstance(value, dict):
        return {key: _without_values(item) for key, item in value.items() if key != "values"}
    return float(f"{value:.6g}") if isinstance(value, float) else value
