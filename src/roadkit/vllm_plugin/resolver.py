"""Expressions as model names under bare `vllm serve`: a model that vLLM does not know is read as an expression.

    ROADKIT_VLLM_ADAPTERS=/adapters VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora …
    client.completions.create(model="formal*0.7 + german", …)         # of /adapters/formal and /adapters/german

vLLM keeps a resolved name for ever. A folder that changes later is not seen until a restart (docs/vllm.md).
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .. import expression
from ..errors import RoadkitError
from . import loading

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

log = logging.getLogger("roadkit.vllm")

FOLDER = "ROADKIT_VLLM_ADAPTERS"


def register_resolver() -> None:
    """Offer the resolver to vLLM's front end, if the environment names a folder of adapters."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    class ExpressionResolver(LoRAResolver):
        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            return await asyncio.to_thread(resolve, lora_name, Path(folder))

    LoRAResolverRegistry.register_resolver("roadkit", ExpressionResolver())


def resolve(text: str, folder: Path) -> LoRARequest | None:
    """The request of an expression over the adapters in a folder; None, with a line in the log, if it means none.

    vLLM answers 404 for None. It gives the request a number of its own, and looks it up by the text, which stays its name.
    """
    names = [entry.name for entry in folder.iterdir() if (entry / "adapter_config.json").is_file()]
    try:
        terms = expression.parse(text, names)
        sources = {term.name: loading.read_source(str(folder / term.name)) for term in terms}
    except RoadkitError as error:
        log.warning("no adapter for model %r: %s", text, error)
        return None
    request = loading.make_request(terms, sources)
    request.lora_name = text  # contents are told apart by the path
    return request
