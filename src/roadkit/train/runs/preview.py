"""What a run would do: the rendered rows with the loss-bearing tokens marked, lengths, sizes and the time it takes.

rich.print(preview(load_recipe("recipes/completion.yaml")))
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ... import models
from ...errors import RecipeError
from ..data.prepared import Prepared, check_head, load_base, padding, prepare
from ..data.tokens import IGNORED
from ..recipe import Recipe
from .progress import clock

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PERCENTILES = (5, 50, 95, 100)
Piece = tuple[str, bool]  # text, and whether its tokens bear the loss


@dataclass(frozen=True)
class Preview:
    """A recipe before it runs. `examples` are rows as pieces of text, each with whether its tokens bear the loss.

    lengths        percentile → tokens a row
    loss_share     share of the tokens that bear the loss
    trainable      parameters, of `parameters` in the model; on `layers` layers
    num_steps      of the optimiser; `seconds` that they take, from one timed step (None: not timed)
    """

    task: str
    format: str
    columns: tuple[str, ...]
    rows: int
    held_out_rows: int
    truncated: int
    dropped: int
    unmarked: int
    classes: list[str] | int | None
    examples: tuple[tuple[Piece, ...], ...]
    lengths: dict[int, int]
    max_length: int
    loss_share: float
    layers: int
    trainable: int
    parameters: int
    num_steps: int
    seconds: float | None

    def __rich__(self) -> Group:
        """For `rich.print`: the rows, then the figures. Where there are no colours, «…» marks what is learnt."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table

        panels = [
            Panel(_marked(example), title=f"row {i + 1}", title_align="left") for i, example in enumerate(self.examples)
        ]
        table = Table(show_header=False, box=None)
        for name, value in self.figures().items():
            table.add_row(name, value)
        return Group(*panels, table)

    def figures(self) -> dict[str, str]:
        """The figures as text, by name."""
        cut = [f"{self.truncated} cut to {self.max_length} tokens"] if self.truncated else []
        cut += [f"{self.dropped} left out (no answer left)"] if self.dropped else []
        cut += [f"{self.unmarked} answers unmarked (rewritten by the chat template)"] if self.unmarked else []
        shown = {
            "format": f"{self.format} (columns {', '.join(self.columns)})",
            "rows": ", ".join([f"{self.rows:,}", f"{self.held_out_rows:,} held out", *cut]),
            "tokens a row": ", ".join(f"{length:,} ({_percentile(at)})" for at, length in self.lengths.items()),
            "loss": f"on {self.loss_share:.0%} of the tokens" if self.task == "causal" else "one label a row",
            "trained": f"{self.trainable:,} of {self.parameters:,} parameters, on {self.layers} layers",
            "steps": f"{self.num_steps:,}" + ("" if self.seconds is None else f", about {clock(self.seconds)}"),
        }
        if self.classes is not None:
            names = self.classes if isinstance(self.classes, int) else ", ".join(self.classes)
            shown["classes"] = str(names)
        return shown


def preview(
    recipe: Recipe,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    rows: int = 3,
    timed: bool = True,
) -> Preview:
    """Prepare everything that a run would, show the first rows, and time one step. Nothing is written.

    Raises what `run` would raise for the same recipe.
    """
    from ..model.tuned import borrowed, target_layers, tune

    if (model is None) != (tokenizer is None):
        raise RecipeError("give model and tokenizer together, or neither")
    prepared = prepare(recipe, model=model, tokenizer=tokenizer)
    base = model if model is not None else load_base(prepared, device=models.best_device())
    check_head(prepared, base)
    parameters = sum(parameter.numel() for parameter in base.parameters())
    with borrowed(base), padding(prepared.tokenizer, base):
        layers = len(target_layers(base, recipe))
        tuned = tune(base, recipe)
        trainable = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
        num_steps = _num_steps(prepared)
        if recipe.gradient_checkpointing:
            tuned.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        seconds = _step_seconds(prepared, tuned) * num_steps * recipe.gradient_accumulation if timed else None
    lengths = sorted(prepared.train.lengths)
    return Preview(
        task=recipe.task,
        format=prepared.layout.name,
        columns=tuple(prepared.columns),
        rows=len(prepared.train),
        held_out_rows=len(prepared.held_out) if prepared.held_out else 0,
        truncated=prepared.train.truncated,
        dropped=prepared.train.dropped,
        unmarked=prepared.train.unmarked,
        classes=prepared.classes,
        examples=tuple(_pieces(prepared, example) for example in prepared.train.examples[:rows]),
        lengths={at: lengths[min(len(lengths) - 1, len(lengths) * at // 100)] for at in PERCENTILES},
        max_length=prepared.max_length,
        loss_share=prepared.train.num_loss_tokens / prepared.train.num_tokens,
        layers=layers,
        trainable=trainable,
        parameters=parameters,
        num_steps=num_steps,
        seconds=seconds,
    )


def _pieces(prepared: Prepared, example: dict[str, Any]) -> tuple[Piece, ...]:
    """A tokenised row back as text, cut where the loss begins and ends."""
    decode = prepared.tokenizer.decode
    if not isinstance(example["labels"], list):
        label = example["labels"]
        name = prepared.classes[label] if isinstance(prepared.classes, list) else str(label)
        return (str(decode(example["input_ids"])), False), (f" → {name}", True)
    runs: list[tuple[list[int], bool]] = []
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        if not runs or runs[-1][1] != (label != IGNORED):
            runs.append(([], label != IGNORED))
        runs[-1][0].append(token)
    return tuple((str(decode(ids)), bears) for ids, bears in runs)


def _marked(example: tuple[Piece, ...]) -> Text:
    from rich.text import Text

    text = Text()
    for piece, bears in example:
        text.append(f"«{piece}»" if bears else piece, style="bold green" if bears else "dim")
    return text


def _percentile(at: int) -> str:
    return {50: "median", 100: "longest"}.get(at, f"{at} %")


def _num_steps(prepared: Prepared) -> int:
    recipe = prepared.recipe
    if recipe.max_steps is not None:
        return recipe.max_steps
    rows = math.ceil(prepared.train.num_tokens / prepared.max_length) if recipe.packing else len(prepared.train)
    batches = math.ceil(rows / recipe.batch_size)
    return math.ceil(math.ceil(batches / recipe.gradient_accumulation) * recipe.epochs)


def _step_seconds(prepared: Prepared, tuned: Any) -> float:
    """Forward and backward of one batch of rows drawn at random, the second time (the first one warms up)."""
    import torch

    from ..model.loss import answer_loss, pad_batch

    recipe, examples = prepared.recipe, prepared.train.examples
    drawn = random.Random(recipe.seed).sample(examples, min(recipe.batch_size, len(examples)))
    if recipe.packing:
        repeats = math.ceil(prepared.max_length / max(1, prepared.train.num_tokens // len(examples)))
        drawn = [{key: (value * repeats)[: prepared.max_length] for key, value in row.items()} for row in drawn]
    if recipe.task == "causal":
        batch = pad_batch(list(drawn), prepared.tokenizer.pad_token_id)  # type: ignore[arg-type]
    else:
        batch = dict(prepared.tokenizer.pad(drawn, return_tensors="pt"))
    batch = {key: value.to(tuned.device) for key, value in batch.items()}
    tuned.train()
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        with torch.autocast(tuned.device.type, torch.bfloat16, enabled=recipe.bf16):
            loss = answer_loss(tuned, batch)[0] if recipe.task == "causal" else tuned(**batch).loss
        loss.backward()
        float(loss.detach())
        seconds = time.perf_counter() - start
        tuned.zero_grad()
    if recipe.group_by_length:  # batches are narrower than one drawn at random
        mean = prepared.train.num_tokens / len(examples)
        seconds *= min(1.0, mean * len(drawn) / batch["input_ids"].numel())
    return seconds
