"""RoAd adapters in vLLM. The entry point `vllm.general_plugins` calls `register` in each of vLLM's processes.

    vllm serve MODEL --enable-lora --max-loras 8 --lora-modules formal=adapters/formal \
        --additional-config '{"roadkit": {"group_sizes": [64]}}'

    requests → admission (checked) → manager (rows of the bank) → layers (the rotation, in the compiled graph)

Three touches of vLLM, each passed through unless an engine asks for RoAd: the platform's configuration and the class of
the LoRA manager here, the front ends' `add_lora` and `add_request` in `admission`. `layers.install` adds one attribute a
layer, and the workers get one method (`worker`).
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from ..errors import RoadkitError

log = logging.getLogger("roadkit.vllm")

_registered = False


def register() -> None:
    """Prepare this process. May be called any number of times; changes nothing for engines without RoAd."""
    global _registered
    if _registered:
        return
    _registered = True
    from vllm.platforms import current_platform

    from . import support

    platform = current_platform if isinstance(current_platform, type) else type(current_platform)
    if not support.is_supported():
        _watch_configuration(platform, supported=False)
        return
    _watch_configuration(platform, supported=True)
    _choose_manager()
    from .admission import guard
    from .resolver import register_resolver

    guard()
    register_resolver()


def _watch_configuration(platform: Any, *, supported: bool) -> None:
    """The platform's `check_and_update_config`, which sees every engine's configuration before it is used.

    With RoAd on, the CPU platform must not see the LoRA configuration: all it does with one is to switch compilation
    off, since vLLM's CPU LoRA kernels cannot be compiled. Ours can.
    """
    from . import support
    from .worker import EXTENSION

    original = platform.check_and_update_config

    @functools.wraps(original)
    def check_and_update_config(vllm_config: Any) -> None:
        if support.settings_of(vllm_config) is None:
            return original(vllm_config)
        if not supported:
            raise support.refuse()
        lora_config = vllm_config.lora_config
        if platform.device_type == "cpu":
            vllm_config.lora_config = None
        try:
            original(vllm_config)
        finally:
            vllm_config.lora_config = lora_config
        extension = vllm_config.parallel_config.worker_extension_cls
        if extension not in ("", EXTENSION):
            raise RoadkitError(f"RoAd needs worker_extension_cls, which is {extension!r}; leave it out")
        vllm_config.parallel_config.worker_extension_cls = EXTENSION
        # vLLM would capture CUDA graphs once with adapters and once without; here both are one graph
        vllm_config.compilation_config.cudagraph_specialize_lora = False
        return None

    platform.check_and_update_config = staticmethod(check_and_update_config)


def _choose_manager() -> None:
    """The name by which the model runners (`LoRAModelRunnerMixin.load_lora_model`) find the class of their manager."""
    from vllm.v1.worker import lora_model_runner_mixin as mixin

    from .manager import RoadManager
    from .support import settings_of

    original = mixin.LRUCacheWorkerLoRAManager

    def manager_of(vllm_config: Any, device: Any, *args: Any, **options: Any) -> Any:
        kind = original if settings_of(vllm_config) is None else RoadManager
        return kind(vllm_config, device, *args, **options)

    mixin.LRUCacheWorkerLoRAManager = manager_of  # type: ignore[assignment, misc]
