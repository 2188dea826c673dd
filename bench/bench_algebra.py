"""Adapter algebra on adapters of smollm2's size: composing two, and the distance matrix of many."""

import resource
import time

from bench_load import random_adapter
from harness import measure

from roadkit import algebra, models
from roadkit.expression import compose


def run(rounds: int = 9, count: int = 200) -> dict:
    """Seconds; MB are 10^6 bytes of resident memory that `distances` added beside the adapters."""
    base = models.load_causal("smollm2")
    adapters = [random_adapter(base, seed=i) for i in range(count)]
    one, two = adapters[:2]
    del base
    sides = {
        "then": lambda: one.then(two),
        "expression a*0.7 + b": lambda: compose("a*0.7 + b", {"a": one, "b": two}),
        "interpolate": lambda: algebra.interpolate(one, two, 0.5),
        "mean of two": lambda: algebra.mean([one, two]),
    }
    rows = measure(sides, rounds=rounds)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    matrix = algebra.distances(adapters)
    seconds = time.perf_counter() - start
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6
    start = time.perf_counter()
    algebra.cluster(matrix)
    return {
        "seconds": rows,
        "compose_ms": 1000 * rows["then"]["median"],
        f"distances_of_{count}_s": seconds,
        f"distances_of_{count}_mb": added,
        f"cluster_of_{count}_s": time.perf_counter() - start,
    }
