"""`roadkit adapter show | verify | compose | convert | merge`: look at adapters on disk and compute with them."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path

import typer

from ..errors import RoadkitError
from .options import named_adapters

app = typer.Typer(help="Look at adapters on disk and compute with them.", no_args_is_help=True)
_JSON = typer.Option(False, "--json", help="Print one JSON object.")


@app.command()
def show(source: str = typer.Argument(help="Adapter folder, hub id or address."), json: bool = _JSON) -> None:
    """What an adapter is, and how far it turns and scales each kind of layer."""
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
    source: str = typer.Argument(help="Adapter folder, hub id or address."),
    model: str | None = typer.Option(None, help="Also check that it fits this base model."),
    json: bool = _JSON,
) -> None:
    """Check every tensor of an adapter, and that it fits a model; exits with 1 and says everything that is wrong."""
    from ..adapter import Adapter

    loaded = Adapter.load(source)
    if model is not None:
        from .. import models, modules

        modules.match(models.load_causal(model), loaded)
    facts = {"source": source, "layers": len(loaded.layout.layers), "content_hash": loaded.content_hash, "model": model}
    print(jsonlib.dumps(facts) if json else f"{source}: {loaded!r} is sound" + (f" and fits {model}" if model else ""))


@app.command()
def compose(
    expression: str = typer.Argument(help="Such as 'formal*0.7 + german'."),
    output: Path = typer.Option(..., "--output", "-o", help="Folder to write."),
    adapters: list[str] = typer.Option(
        ..., help="name=path, an adapter's folder, or a folder of adapters. Repeatable."
    ),
    json: bool = _JSON,
) -> None:
    """Compute an expression over adapters and write the result as an adapter."""
    from ..adapter import Adapter
    from ..expression import compose as evaluate
    from ..expression import parse

    sources = named_adapters(adapters)
    needed = {term.name: Adapter.load(sources[term.name]) for term in parse(expression, sources)}
    result = evaluate(expression, needed)
    result.save(output)
    facts = {"output": str(output), "expression": expression, "content_hash": result.content_hash}
    print(jsonlib.dumps(facts) if json else f"{output}: {result!r}")


@app.command()
def convert(
    source: str = typer.Argument(help="Adapter folder, hub id or address."),
    output: Path = typer.Option(..., "--output", "-o", help="Folder to write."),
    variant: str = typer.Option("smallest", help="smallest (road_1 where that is exact, else road_2) or keep."),
    json: bool = _JSON,
) -> None:
    """Copy an adapter from any source into a folder, in the smallest variant that holds it."""
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
    source: str = typer.Argument(help="Adapter folder, hub id or address; or an expression with --adapters."),
    output: Path = typer.Option(..., "--output", "-o", help="Folder to write the full model to."),
    model: str = typer.Option("smollm2", help="Base model: hub id, folder, or smollm2."),
    adapters: list[str] = typer.Option([], help="Adapters that the expression names. Repeatable."),
    dtype: str = typer.Option(
        "auto", help="Of the weights written: auto is the base's own, or float32, bfloat16, float16."
    ),
    json: bool = _JSON,
) -> None:
    """Write a decoder with the adapter merged into its weights; plain transformers loads it."""
    from .. import models
    from ..adapter import Adapter
    from ..expression import compose as evaluate
    from ..expression import parse
    from ..files import replaced_directory
    from ..merging import merge as merge_weights

    if adapters:
        sources = named_adapters(adapters)
        chosen = evaluate(source, {term.name: Adapter.load(sources[term.name]) for term in parse(source, sources)})
    else:
        chosen = Adapter.load(source)
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
