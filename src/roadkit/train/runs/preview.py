"""What a run would do: the rendered rows with the loss-bearing tokens marked, lengths, sizes and the time it takes.

rich.print(preview(load_recipe("recipes/completion.yaml")))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..data.labels import Classes
from ..data.tokens import IGNORED
from ..data.training_data import TrainingData, prepare_data
from ..model.base import check_both_or_neither
from ..progress import clock
from ..recipe import Recipe

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PERCENTILES = (5, 50, 95, 100)
MarkedText = tuple[str, bool]  # text, and whether its tokens bear the loss


@dataclass(frozen=True)
class Preview:
    """A recipe before it runs. `examples` are rows as pieces of text, each with whether its tokens bear the loss.

    rows, held_out_rows              to train on, and to evaluate on
    truncated, dropped, unmarked     of the training rows (see `Encoded`)
    lengths                          percentile → tokens a row
    loss_share                       share of the tokens that bear the loss
    trainable                        parameters that are trained, of `parameters` in the model; on `layers` layers
    num_steps                        of the optimiser
    seconds                          that they take, judged by one step; None if it was not timed
    """

    task: str
    format: str
    columns: tuple[str, ...]
    rows: int
    held_out_rows: int
    truncated: int
    dropped: int
    unmarked: int
    classes: Classes
    examples: tuple[tuple[MarkedText, ...], ...]
    lengths: dict[int, int]
    max_length: int
    loss_share: float
    layers: int
    trainable: int
    parameters: int
    num_steps: int
    seconds: float | None

    def __rich__(self) -> Group:
        """For `rich.print`: the rows, then the figures. «…» marks what is learnt, also without colours."""
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

    model, tokenizer    already loaded (both or none); afterwards the model is as it was before
    rows                shown
    timed               False saves the step, and leaves `seconds` None

    Raises `RecipeError` and `ModelError` for a recipe, data or a model that cannot be used.
    """
    check_both_or_neither(model, tokenizer)
    data = prepare_data(recipe, model=model, tokenizer=tokenizer)

    from .cost import measure  # torch and PEFT take seconds: only once the data is read

    cost = measure(data, model, timed=timed)
    lengths = sorted(data.train.lengths)
    return Preview(
        task=recipe.task,
        format=data.layout.name,
        columns=tuple(data.columns),
        rows=len(data.train),
        held_out_rows=len(data.held_out) if data.held_out else 0,
        truncated=data.train.truncated,
        dropped=data.train.dropped,
        unmarked=data.train.unmarked,
        classes=data.classes,
        examples=tuple(_pieces(data, example) for example in data.train.examples[:rows]),
        lengths={at: lengths[min(len(lengths) - 1, len(lengths) * at // 100)] for at in PERCENTILES},
        max_length=data.max_length,
        loss_share=data.train.num_loss_tokens / data.train.num_tokens,
        layers=cost.layers,
        trainable=cost.trainable,
        parameters=cost.parameters,
        num_steps=cost.num_steps,
        seconds=cost.seconds,
    )


def _pieces(data: TrainingData, example: dict[str, Any]) -> tuple[MarkedText, ...]:
    """A tokenised row back as text, cut where the loss begins and ends."""
    decode = data.tokenizer.decode
    if not isinstance(example["labels"], list):
        label = example["labels"]
        name = data.classes[label] if isinstance(data.classes, list) else str(label)
        return (str(decode(example["input_ids"])), False), (f" → {name}", True)
    runs: list[tuple[list[int], bool]] = []
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        if not runs or runs[-1][1] != (label != IGNORED):
            runs.append(([], label != IGNORED))
        runs[-1][0].append(token)
    return tuple((str(decode(ids)), bears) for ids, bears in runs)


def _marked(example: tuple[MarkedText, ...]) -> Text:
    from rich.text import Text

    text = Text()
    for piece, bears in example:
        text.append(f"«{piece}»" if bears else piece, style="bold green" if bears else "dim")
    return text


def _percentile(at: int) -> str:
    return {50: "median", 100: "longest"}.get(at, f"{at} %")
