"""Interventions in a mixed batch: eight requests, each with its own subspaces of a block's output, beside plain decoding."""

import torch
from bench_mixed import engine_rate, prompts
from harness import over, summary, turns

from roadkit import models
from roadkit.adapter import Adapter
from roadkit.engine.engine import Engine
from roadkit.engine.request import Request
from roadkit.intervene import Intervention, Positions, Subspace, site

PARTS = 8


def run(rounds: int = 7, tokens: int = 48, batch: int = 8) -> dict:
    """Tokens per second. last: the prompt's last token; all: every token, generated ones too; both over a plain engine.

    `registered_over_plain` has interventions in the engine and requests that use none.
    """
    base = models.load_causal("smollm2")
    width = base.config.hidden_size
    known = {where: intervention(site(base, 15), width, f"{where}:1" if where == "last" else where) for where in KINDS}
    del base
    plain = Engine.from_pretrained("smollm2", max_batch=batch)
    ours = Engine.from_pretrained("smollm2", adapters=known, max_batch=batch)

    def requests(where: str | None) -> list[Request]:
        names = [None if where is None else f"{where}:{i % PARTS} + {where}:{(i + 1) % PARTS}" for i in range(batch)]
        return [
            Request(prompt=prompt, adapter=name, max_tokens=tokens, ignore_eos=True)
            for prompt, name in zip(prompts(batch), names, strict=True)
        ]

    sides = {
        "plain": lambda: engine_rate(plain, requests(None)),
        "registered": lambda: engine_rate(ours, requests(None)),
    }
    sides |= {where: lambda where=where: engine_rate(ours, requests(where)) for where in KINDS}
    rates = turns(sides, rounds=rounds)
    ratios = {f"{name}_over_plain": over(rates, name, "plain") for name in sides if name != "plain"}
    return {"tokens_per_second": {name: summary(values) for name, values in rates.items()}, **ratios}


KINDS = ("last", "all")


def intervention(name: str, width: int, positions: str) -> Intervention:
    """A random rotation of one block's output in `PARTS` subspaces, each answered for by name."""
    generator = torch.Generator().manual_seed(0)
    theta = 0.1 * torch.randn(width // 2, generator=generator)
    rotation = Adapter.from_parameters({name: (theta, torch.ones_like(theta))}, variant="road_1", group_size=64)
    parts = {str(i): part for i, part in enumerate(Subspace.split(width, PARTS, group_size=64))}
    return Intervention(rotation, Positions.parse(positions), parts)
