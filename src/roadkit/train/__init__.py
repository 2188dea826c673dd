"""Training: a recipe in, an adapter out.

    from roadkit.train import Recipe, run
    result = run(Recipe(model="smollm2", data="answers.jsonl", output="adapters/json", epochs=3))

Each room imports only from those before it: recipe and progress, data/, model/, output/, evaluation/, trainers/, runs/.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_HOMES = {
    "Comparison": "evaluation.compare",
    "LoraOptions": "recipe",
    "ManyResult": "output.result",
    "Preview": "runs.preview",
    "Recipe": "recipe",
    "Report": "progress",
    "TrainResult": "output.result",
    "compare": "evaluation.compare",
    "load_pair": "output.pair",
    "load_recipe": "recipe",
    "preview": "runs.preview",
    "run": "runs.single",
    "run_many": "runs.many",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from .evaluation.compare import Comparison as Comparison
    from .evaluation.compare import compare as compare
    from .output.pair import load_pair as load_pair
    from .output.result import ManyResult as ManyResult
    from .output.result import TrainResult as TrainResult
    from .progress import Report as Report
    from .recipe import LoraOptions as LoraOptions
    from .recipe import Recipe as Recipe
    from .recipe import load_recipe as load_recipe
    from .runs.many import run_many as run_many
    from .runs.preview import Preview as Preview
    from .runs.preview import preview as preview
    from .runs.single import run as run


def __getattr__(name: str) -> object:
    """Import a public name's module when the name is first used: a recipe alone needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'roadkit.train' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
