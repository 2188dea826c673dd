"""Training: a recipe in, an adapter out.

from roadkit.train import Recipe, run
result = run(Recipe(model="smollm2", data="answers.jsonl", output="adapters/json", epochs=3))
"""

from importlib import import_module
from typing import TYPE_CHECKING

_HOMES = {
    "LoraOptions": "recipe",
    "Preview": "dryrun",
    "Recipe": "recipe",
    "Report": "progress",
    "TrainResult": "session",
    "ManyResult": "many",
    "load_pair": "pair",
    "load_recipe": "recipe",
    "preview": "dryrun",
    "run": "session",
    "run_many": "many",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from .dryrun import Preview as Preview
    from .dryrun import preview as preview
    from .many import ManyResult as ManyResult
    from .many import run_many as run_many
    from .pair import load_pair as load_pair
    from .progress import Report as Report
    from .recipe import LoraOptions as LoraOptions
    from .recipe import Recipe as Recipe
    from .recipe import load_recipe as load_recipe
    from .session import TrainResult as TrainResult
    from .session import run as run


def __getattr__(name: str) -> object:
    """Import a public name's module when the name is first used: a recipe alone needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'roadkit.train' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
