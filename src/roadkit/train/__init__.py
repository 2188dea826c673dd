"""Training: a recipe in, an adapter out.

from roadkit.train import Recipe, run
result = run(Recipe(model="smollm2", data="answers.jsonl", output="adapters/json", epochs=3))
"""

from importlib import import_module
from typing import TYPE_CHECKING

_HOMES = {
    "LoraOptions": "recipe",
    "Preview": "runs.preview",
    "Recipe": "recipe",
    "Report": "runs.progress",
    "TrainResult": "runs.session",
    "ManyResult": "runs.many",
    "load_pair": "output.pair",
    "load_recipe": "recipe",
    "preview": "runs.preview",
    "run": "runs.session",
    "run_many": "runs.many",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from .output.pair import load_pair as load_pair
    from .recipe import LoraOptions as LoraOptions
    from .recipe import Recipe as Recipe
    from .recipe import load_recipe as load_recipe
    from .runs.many import ManyResult as ManyResult
    from .runs.many import run_many as run_many
    from .runs.preview import Preview as Preview
    from .runs.preview import preview as preview
    from .runs.progress import Report as Report
    from .runs.session import TrainResult as TrainResult
    from .runs.session import run as run


def __getattr__(name: str) -> object:
    """Import a public name's module when the name is first used: a recipe alone needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'roadkit.train' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
