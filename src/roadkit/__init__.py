"""roadkit: fine-tune by rotating pairs of outputs, serve many adapters in one batch, compose them exactly.

import roadkit as rk
engine = rk.Engine.from_pretrained("smollm2", adapters={"formal": "adapters/formal"})
print(engine.generate([rk.Request(prompt="Hello", adapter="formal*0.7")])[0].text)
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "Adapter": "adapter",
    "Bank": "engine.bank",
    "Completion": "engine.request",
    "Engine": "engine.engine",
    "Request": "engine.request",
    "RoadkitError": "errors",
    "attached": "modules",
    "compose": "expression",
    "disable_peft": "peft_tuner",
    "enable_peft": "peft_tuner",
    "merge": "merging",
    "rotate_rows": "kernels",
    "unmerge": "merging",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from .adapter import Adapter as Adapter
    from .engine.bank import Bank as Bank
    from .engine.engine import Engine as Engine
    from .engine.request import Completion as Completion
    from .engine.request import Request as Request
    from .errors import RoadkitError as RoadkitError
    from .expression import compose as compose
    from .kernels import rotate_rows as rotate_rows
    from .merging import merge as merge
    from .merging import unmerge as unmerge
    from .modules import attached as attached
    from .peft_tuner import disable_peft as disable_peft
    from .peft_tuner import enable_peft as enable_peft


def __getattr__(name: str) -> object:
    """Import a public name's module when the name is first used, so that `import roadkit` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'roadkit' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
