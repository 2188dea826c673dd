"""`roadkit adapter show | verify | compose | convert | merge`: look at adapters on disk and compute with them."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..errors import RoadkitError
from .options import ADAPTER, JSON, MODEL, NAMED, OUTPUT, named_adapters

if TYPE_CHECKING:
    from ..adapter import Adapter

app = typer.Typer(help="Look at adapters on disk and compute with them.", no_args_is_help=True)


@app.command()
def show(source: str = ADAPTER, json: bool = JSON) -> None:
    """Show what an adapter is, and how far it turns and scales each kind of layer."""
    from ..adapter import Adapter
    from ..describe import describe

    facts = describe(Adapter.load(source))
    if json:
        print(jsonlib.dumps(facts))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for key in ("variant", "group_size", "parameters", "base_model", "base_fingerprint", "heads", "content_hash"):
        console.print(f"{key:17} {facts[key]}")
    table = Table("module", "layers", "width", "mean |angle| °", "max |angle| °", "mean |log scale|", "worst condition")
    for name, row in facts["modules"].items():
        numbers = [f"{row[key]:.3g}" for key in ("mean_angle", "max_angle", "mean_log_scale", "condition")]
        table.add_row(name, str(row["layers"]), str(row["width"]), *numbers)
    console.print(table)


@app.command()
def verify(
    source: str = ADAPTER,
    model: str | None = typer.Option(None, help="Also check that the adapter fits this base model."),
    json: bool = JSON,
) -> None:
    """Check every tensor of an adapter. If anything is wrong, say all of it and exit with 1."""
    from ..adapter import Adapter

    loaded = Adapter.load(source)
    if model is not None:
        from .. import models, modules

        modules.match(models.load_causal(model), loaded)
    facts = {"source": source, "layers": len(loaded.layout.layers), "content_hash": loaded.content_hash, "model": model}
    print(jsonlib.dumps(facts) if json else f"{source}: {loaded!r} is sound" + (f" and fits {model}" if model else ""))


@app.command()
def compose(
    expression: str = typer.Argument(help="Adapters with strengths, such as 'formal*0.7 + german'."),
    output: Path = OUTPUT,
    adapters: list[str] = typer.Option(..., help=NAMED),
    json: bool = JSON,
) -> None:
    """Compute an expression over adapters and write the result as one adapter.

    Example: roadkit adapter compose "formal*0.7 + german" --adapters adapters -o adapters/both
    """
    result = _evaluate(expression, adapters)
    result.save(output)
    facts = {"output": str(output), "expression": expression, "content_hash": result.content_hash}
    print(jsonlib.dumps(facts) if json else f"{output}: {result!r}")


@app.command()
def convert(
    source: str = ADAPTER,
    output: Path = OUTPUT,
    variant: str = typer.Option("smallest", help="smallest (road_1 if that is exact, else road_2) or keep."),
    json: bool = JSON,
) -> None:
    """Copy an adapter from anywhere into a folder, in the smallest variant that holds it."""
    import dataclasses

    from ..adapter import Adapter

    if variant not in ("smallest", "keep"):
        raise RoadkitError(f"variant must be 'smallest' or 'keep', got {variant!r}")
    loaded = Adapter.load(source)
    if variant == "smallest":
        loaded = dataclasses.replace(loaded, variant=None, parameters={})
    loaded.save(output)
    saved = Adapter.load(output)
    facts = {"output": str(output), "variant": saved.variant, "content_hash": saved.content_hash}
    print(jsonlib.dumps(facts) if json else f"{output}: {saved!r}")


@app.command()
def merge(
    source: str = typer.Argument(help="An adapter: a folder, hub id or address; with --adapters an expression."),
    output: Path = typer.Option(..., "--output", "-o", help="Folder to write the full model to."),
    model: str = MODEL,
    adapters: list[str] = typer.Option([], help="The adapters that the expression names. " + NAMED),
    dtype: str = typer.Option(
        "auto", help="Type of the written weights: float32, bfloat16, float16, or auto for the base's own."
    ),
    json: bool = JSON,
) -> None:
    """Write a model with an adapter merged into its weights, which transformers loads without roadkit.

    Example: roadkit adapter merge "formal + brief*0.5" --adapters adapters --model smollm2 -o models/formal-brief
    """
    from .. import models
    from ..adapter import Adapter
    from ..files import replaced_directory
    from ..merging import merge as merge_weights

    chosen = _evaluate(source, adapters) if adapters else Adapter.load(source)
    base = models.load_causal(model, dtype=dtype)
    merge_weights(base, chosen, keep_originals=False)
    try:
        with replaced_directory(output) as folder:
            base.save_pretrained(folder)
            models.load_processor(model).save_pretrained(folder)
    except OSError as error:
        raise RoadkitError(f"{output} cannot be written: {error}") from error
    facts = {"output": str(output), "model": model, "content_hash": chosen.content_hash}
    print(jsonlib.dumps(facts) if json else f"{output}: {model} with {chosen!r} merged")


def _evaluate(expression: str, adapters: list[str]) -> Adapter:
    """The adapter that an expression means; only the adapters that it names are loaded."""
    from .. import expression as expressions
    from ..adapter import Adapter

    sources = named_adapters(adapters)
    terms = expressions.parse(expression, sources)
    return expressions.compose(terms, {term.name: Adapter.load(sources[term.name]) for term in terms})
