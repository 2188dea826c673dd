"""The files that stand beside an adapter: its model card and the run's figures.

model_card(result, recipe, base)             # Markdown with the front matter that the hub reads
result_files(result, recipe, base)           # {"README.md": b"…", "training.json": b"…"}
"""

from __future__ import annotations

import json

import yaml

from ... import __version__
from ...adapter import Base
from ..recipe import Recipe, dump_recipe
from .directory import CARD, FIGURES
from .result import TrainResult


def result_files(result: TrainResult, recipe: Recipe, base: Base) -> dict[str, bytes]:
    """→ file name → content of the model card and the figures."""
    return {
        CARD: model_card(result, recipe, base).encode(),
        FIGURES: json.dumps(result.figures(), indent=2, ensure_ascii=False).encode(),
    }


def model_card(result: TrainResult, recipe: Recipe, base: Base) -> str:
    """What was trained, on what, how it did and how to use it."""
    front = {
        "base_model": base.name,
        "library_name": "peft",
        "tags": ["road", "roadkit", "lora"] if recipe.lora else ["road", "roadkit"],
        "pipeline_tag": "text-generation" if recipe.task == "causal" else "text-classification",
    }
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(result.metrics.items()))
    notes = [f"{result.truncated} rows were cut to the maximum length."] if result.truncated else []
    notes += [f"{result.dropped} rows had no answer left to learn."] if result.dropped else []
    if isinstance(result.classes, list):
        notes.append("Classes, in the order of the outputs: " + ", ".join(result.classes) + ".")
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# {result.adapter.name}

A RoAd adapter (2D rotary adaptation, arXiv 2409.00119; {recipe.variant}, group size {recipe.group_size}, \
{result.trainable:,} trained parameters) for `{base.name}`, trained by roadkit {__version__} \
on `{recipe.data}`: {result.examples:,} examples, {result.steps:,} steps.

| metric | value |
|---|---|
{rows}

{" ".join(notes)}

## Use

{_usage(result, recipe)}

## Recipe

```yaml
{dump_recipe(recipe).strip()}
```
"""


def _usage(result: TrainResult, recipe: Recipe) -> str:
    path = result.adapter
    if recipe.lora is not None:
        return (
            "Two PEFT directories, to be applied in this order: `road/` rotates the outputs of the base layers, "
            "`lora/` adds to the rotated outputs.\n\n```python\nfrom roadkit.train import load_pair\n\n"
            f'model = load_pair(base_model, "{path}")\n```'
        )
    if recipe.task == "causal":
        return f"```sh\nroadkit generate 'Hello' --model {recipe.model} --adapters {path} --adapter {path.name}\n```"
    return (
        f'```python\nimport roadkit as rk\n\nwith rk.attached(model, rk.Adapter.load("{path}")):  # model: the base '
        "with a head of the same size\n    scores = model(**inputs).logits\n```"
    )
