"""How decoding scales with the batch, with the number of adapters in it, and with the context: data and figure."""

import json
from pathlib import Path

from bench_load import random_adapter
from bench_mixed import engine_rate, prompts
from harness import measure

from roadkit import models
from roadkit.engine.engine import Engine
from roadkit.engine.request import Request

DOCS = Path(__file__).resolve().parents[1] / "docs"
BATCHES, ADAPTERS, CONTEXTS = (1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 16, 32, 64), (128, 256, 512, 1024, 2048)


def run(rounds: int = 3, tokens: int = 32) -> dict:
    """Tokens per second of decoding; writes docs/data/scaling.json and docs/figures/scaling.png."""
    base = models.load_causal("smollm2")
    adapters = {f"a{i}": random_adapter(base, seed=i) for i in range(64)}
    del base
    engine = Engine.from_pretrained("smollm2", adapters=adapters, max_batch=64, cache_gib=4.0)
    batch = {count: rates(engine, count, count, rounds, tokens) for count in BATCHES}
    distinct = {count: rates(engine, 64, count, rounds, tokens) for count in ADAPTERS}
    context = {length: decode_rate(engine, length, rounds, tokens) for length in CONTEXTS}
    figures = {"batch": batch, "adapters_in_64": distinct, "context_at_8": context}
    (DOCS / "data").mkdir(exist_ok=True)
    (DOCS / "data" / "scaling.json").write_text(json.dumps(figures, indent=1) + "\n")
    draw(figures, DOCS / "figures" / "scaling.png")
    return figures


def rates(engine: Engine, count: int, adapters: int, rounds: int, tokens: int) -> dict[str, float]:
    """Tokens per second of `count` requests over `adapters` different adapters, and of as many base requests."""
    asked = {
        kind: [
            Request(prompt=prompt, adapter=name(i), max_tokens=tokens, ignore_eos=True)
            for i, prompt in enumerate(prompts(count))
        ]
        for kind, name in (("mixed", lambda i: f"a{i % adapters}"), ("base", lambda i: None))
    }
    measured = measure({kind: lambda r=r: engine.generate(r) for kind, r in asked.items()}, rounds=rounds)
    return {kind: count * tokens / row["median"] for kind, row in measured.items()}


def decode_rate(engine: Engine, length: int, rounds: int, tokens: int) -> float:
    """Tokens per second of 8 requests after a prompt of `length` tokens, the prompt's own time left out."""
    seconds = []
    for _ in range(rounds):
        by_tokens = {}
        for new in (1, 1 + tokens):
            asked = [
                Request(prompt=[11 + i] * length, adapter=f"a{i}", max_tokens=new, ignore_eos=True) for i in range(8)
            ]
            by_tokens[new] = 8 * new / engine_rate(engine, asked)
        seconds.append(by_tokens[1 + tokens] - by_tokens[1])
    return 8 * tokens / sorted(seconds)[len(seconds) // 2]


def draw(figures: dict, path: Path) -> None:
    """Three panels; colours that colour-blind readers and printers keep apart."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), constrained_layout=True)
    mixed = {"color": "#0072B2", "marker": "o", "label": "each its own adapter"}
    base = {"color": "#D55E00", "marker": "s", "linestyle": "--", "label": "base requests"}
    for axis, key, label in (
        (axes[0], "batch", "requests in the batch"),
        (axes[1], "adapters_in_64", "different adapters among 64 requests"),
    ):
        rows = figures[key]
        axis.plot([int(x) for x in rows], [row["mixed"] for row in rows.values()], **mixed)
        axis.plot([int(x) for x in rows], [row["base"] for row in rows.values()], **base)
        axis.set_xlabel(label)
        axis.legend()
    rows = figures["context_at_8"]
    axes[2].plot([int(x) for x in rows], list(rows.values()), **mixed)
    axes[2].set_xlabel("tokens of context, 8 requests")
    for axis in axes:
        ticks = axis.lines[0].get_xdata()
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_ylim(0, 1.1 * max(line.get_ydata().max() for line in axis.lines))
        axis.set_ylabel("tokens per second")
        axis.grid(alpha=0.3)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
