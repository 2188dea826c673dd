"""What a trainer and its callbacks share while one run lasts.

run_state = RunState(recipe, base, run_identity(recipe, …), progress)
run_state.tokens, run_state.last_loss                # counted by the trainer, read by the callbacks
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...adapter import Base
from ..progress import Progress
from ..recipe import Recipe


@dataclass
class RunState:
    """One run from its first step to its last.

    identity       what a checkpoint must agree with to be continued (see `run_identity`)
    extra_files    go beside the adapter when it is saved to its output
    tokens         seen in training, padding not counted
    """

    recipe: Recipe
    base: Base
    identity: Mapping[str, Any]
    progress: Progress | None = None
    extra_files: dict[str, bytes] = field(default_factory=dict)
    tokens: int = 0
    last_loss: float = math.nan
