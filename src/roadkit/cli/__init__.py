"""The command line, one file a verb: parse, call one function, print.

roadkit demo | train | eval | generate | serve | chat | keys | adapter | plot | bench
"""

from __future__ import annotations

import logging
import sys

import typer

from .. import __version__
from ..errors import RoadkitError
from . import adapter, algebra, bench, chat, demo, eval, generate, keys, plot, serve, train
from .moved import Verbs

# \b keeps the lines as they are.
EXAMPLES = """\b
Examples:
  roadkit demo
  roadkit train recipes/completion.yaml data=mine.jsonl output=adapters/mine
  roadkit generate "Why is the sky blue?" --adapters adapters --adapter mine
  roadkit serve smollm2 --adapters adapters
"""

app = typer.Typer(
    name="roadkit",
    cls=Verbs,
    help="Fine-tune language models by rotating pairs of outputs, serve many such adapters in one batch, and compose "
    "them exactly. `roadkit VERB --help` says more about a verb.",
    epilog=EXAMPLES,
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
app.add_typer(keys.app, name="keys")
algebra.add_to(adapter.app)
app.add_typer(adapter.app, name="adapter")
app.add_typer(plot.app, name="plot")
app.command()(bench.bench)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"roadkit {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print roadkit's version and leave."
    ),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log what the library does."),
) -> None:
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
