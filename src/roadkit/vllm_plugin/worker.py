"""A call that vLLM's workers answer beside their own: load an adapter, or say why that cannot be.

    replies = llm_engine.collective_rpc("roadkit_add_adapter", args=("formal", 1, "adapters/formal", False))   # ["", ""]

vLLM's own `add_lora` must not fail on a rank. The executor stops reading the ranks' replies at the first error, and hands
those that are left to the next call, which may be about a good adapter (0.32, `MultiprocExecutor.collective_rpc`).
"""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger("roadkit.vllm")

EXTENSION = f"{__name__}.RoadWorker"  # for vLLM's `worker_extension_cls`
METHOD = "roadkit_add_adapter"


class RoadWorker:
    """Mixed into vLLM's worker class."""

    add_lora: Any

    def roadkit_add_adapter(self, name: str, adapter_id: int, path: str, load_inplace: bool) -> str:
        """Load an adapter on this rank. The answer is '' or the reason why it was refused."""
        from vllm.lora.request import LoRARequest

        try:
            self.add_lora(LoRARequest(name, adapter_id, path, load_inplace=load_inplace))
        except Exception as error:
            log.warning("adapter %r is refused: %s", name, error)
            return str(error) or type(error).__name__
        return ""
