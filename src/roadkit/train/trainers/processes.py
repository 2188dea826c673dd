"""The processes that torchrun or `accelerate launch` started to train one adapter together.

if is_first_process():
    print(f"{num_processes()} processes")
"""

from __future__ import annotations

import os


def num_processes() -> int:
    """How many train together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the process that prints and deletes for all."""
    return int(os.environ.get("RANK", "0")) == 0
