"""Merging road_1 into one d×d layer and undoing it: roadkit's row rotation against PEFT's dense matrix."""

import time

import torch
from harness import ratio, summary
from peft import RoadConfig, get_peft_model
from torch import nn

from roadkit.adapter import Adapter
from roadkit.merging import merge, unmerge


def run(rounds: int = 7) -> dict:
    figures: dict = {}
    table: dict = {}
    for d, k in ((1024, 2048), (2048, 2048), (2048, 4096)):
        ours = nn.Sequential(nn.Linear(k, d, bias=False))
        adapter = Adapter.from_parameters(
            {"0": (torch.randn(d // 2) * 0.1, 1 + torch.randn(d // 2) * 0.1)}, variant="road_1", group_size=64
        )
        measured = measure_pair("roadkit", lambda: merge(ours, adapter), lambda: unmerge(ours), rounds)
        if d == k:
            peft = get_peft_model(
                nn.Sequential(nn.Linear(k, d, bias=False)), RoadConfig(target_modules=["0"], init_weights=False)
            )
            theirs = measure_pair("peft", peft.merge_adapter, peft.unmerge_adapter, rounds)
            both = {**measured, **theirs}
            figures["peft_merge_over_ours"] = ratio(both, "peft merge", "roadkit merge")
            figures["peft_unmerge_over_ours"] = ratio(both, "peft unmerge", "roadkit unmerge")
            measured = both
        table |= {f"{d}x{k} {name}": row for name, row in measured.items()}
    figures["ours_2048x4096_over_2048x2048"] = (
        table["2048x4096 roadkit merge"]["median"] / table["2048x2048 roadkit merge"]["median"]
    )
    return {"seconds": table, **figures}


def measure_pair(name: str, do, undo, rounds: int) -> dict:
    """Time a merge and its unmerge apart, in alternation."""

    times: dict[str, list[float]] = {f"{name} merge": [], f"{name} unmerge": []}
    for i in range(rounds + 1):
        for label, call in ((f"{name} merge", do), (f"{name} unmerge", undo)):
            start = time.perf_counter()
            call()
            if i:  # the first warms up
                times[label].append(time.perf_counter() - start)
    return {label: summary(values) for label, values in times.items()}
