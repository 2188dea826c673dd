"""The command line, one file a verb: parse, call one function, print.

roadkit demo | train | eval | generate | serve | keys | chat | bench | adapter | plot
"""

from __future__ import annotations

import logging
import sys

import typer

from ..errors import RoadkitError
from . import adapter, algebra, bench, chat, demo, eval, generate, keys, plot, serve, train
from .moved import Verbs

app = typer.Typer(
    name="roadkit",
    cls=Verbs,
    help="Fine-tune by rotating pairs of outputs, serve many adapters in one batch, compose them exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(demo.demo)
app.command()(train.train)
app.command("eval")(eval.evaluate)
app.command()(generate.generate)
app.command()(serve.serve)
app.command()(chat.chat)
app.command()(bench.bench)
algebra.add_to(adapter.app)
app.add_typer(adapter.app, name="adapter")
app.add_typer(plot.app, name="plot")
app.add_typer(keys.app, name="keys")


@app.callback()
def _main(verbose: bool = typer.Option(False, "--verbose", "-v", help="Log what the library does.")) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    for name in ("torchao", "torch.utils._pytree"):  # what torchao says at import concerns nobody here
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> None:
    """Run the command line. A user's mistake prints one line and exits with 1."""
    try:
        app()
    except RoadkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
