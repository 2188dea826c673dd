"""`python -m paper`: the command line of the paper's experiments. Each command parses, calls one function, and prints.

python -m paper --help
python -m paper glue --tasks rte --methods road_1,lora
python -m paper report
"""

from __future__ import annotations

import logging
import sys

import typer

from roadkit.errors import RoadkitError

from .answering import arithmetic, commonsense, instruct, multimodal, win_rate
from .classifying import glue, pilot
from .combining import composition, merging
from .measuring import efficiency, size
from .reporting import report

PANELS = {
    "Encoders": (pilot, glue),
    "Decoders": (commonsense, arithmetic, instruct, win_rate, multimodal),
    "Several tasks in one": (composition, merging),
    "Time and size": (efficiency, size),
    "Tables and figures": (report,),
}
NOISY = (
    "torchao",
    "torch.utils._pytree",
    "huggingface_hub",
)  # they warn of what no experiment needs, or of every retry

app = typer.Typer(
    name="python -m paper",
    help="Run the experiments of the RoAd paper, and some of our own. A ledger keeps finished runs; none is run twice.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)


@app.callback()
def _main(verbose: bool = typer.Option(False, "--verbose", "-v", help="Log what the library does.")) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> None:
    """Run the command line. A user's mistake prints one line and exits with 1."""
    try:
        app()
    except RoadkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
