"""RoAd adapters in vLLM. The entry point `vllm.general_plugins` calls `register` in each of vLLM's processes.

    vllm serve MODEL --enable-lora --max-loras 8 --lora-modules formal=adapters/formal \
        --additional-config '{"roadkit": {"group_sizes": [64]}}'

A request's way: `admission` checks its adapter, `manager` makes it a row of the bank, `layers` rotates in the compiled graph.

vLLM is touched in three places, and an engine that does not ask for RoAd passes through all of them: the platform's
configuration and the class of the LoRA manager here, the front ends' `add_lora` and `add_request` in `admission`. Besides,
`layers.install` gives each layer one attribute, and `worker` gives the workers one method.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from ..errors import RoadkitError

log = logging.getLogger("roadkit.vllm")

_registered = False


def register() -> None:
    """Prepare this process for engines that ask for RoAd. Others are not changed. Idempotent."""
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
    from .admission import guard_front_ends
    from .resolver import register_resolver

    guard_front_ends()
    register_resolver()


def _watch_configuration(platform: Any, *, supported: bool) -> None:
    """Wrap the platform's `check_and_update_config`, which sees every engine's configuration before it is used.

    With RoAd on, the CPU platform must not see the LoRA configuration. All it does with one is to switch compilation off,
    because vLLM's LoRA kernels for the CPU cannot be compiled. Ours can.
    """
    from . import support
    from .worker import EXTENSION

    original = platform.check_and_update_config

    @functools.wraps(original)
    def check_and_update_config(vllm_config: Any) -> None:
        if support.plugin_options(vllm_config) is None:
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
        # vLLM would capture CUDA graphs once with adapters and once without, but here both are one graph
        vllm_config.compilation_config.cudagraph_specialize_lora = False
        return None

    platform.check_and_update_config = staticmethod(check_and_update_config)


def _choose_manager() -> None:
    """Replace the name by which `LoRAModelRunnerMixin.load_lora_model` finds the class of a model runner's manager."""
    from vllm.v1.worker import lora_model_runner_mixin

    from .manager import RoadManager
    from .support import plugin_options

    mixin: Any = lora_model_runner_mixin  # its types foresee no other class under the name
    original = mixin.LRUCacheWorkerLoRAManager  # pyright: ignore[reportPrivateImportUsage]

    def manager_of(vllm_config: Any, device: Any, *args: Any, **options: Any) -> Any:
        kind = original if plugin_options(vllm_config) is None else RoadManager
        return kind(vllm_config, device, *args, **options)

    mixin.LRUCacheWorkerLoRAManager = manager_of
