"""Which vLLM this plugin was written against, and how RoAd is switched on. Only this file reads versions and options.

    vllm serve MODEL --enable-lora --max-loras 8 --additional-config '{"roadkit": {"group_sizes": [64]}}'

`additional_config` is vLLM's own place for plugins. It reaches every process and is part of the key of vLLM's compilation
cache. Without the key `roadkit` in it, vLLM behaves as if this package were not installed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..errors import RoadkitError, nearest

SUPPORTED = ">=0.32,<0.33"  # all that touches vLLM's internals was read against 0.32.0; see docs/vllm.md
KEY = "roadkit"


class UnsupportedVllm(RoadkitError):
    """RoAd was asked of a vLLM that this plugin does not know."""


@dataclass(frozen=True)
class PluginOptions:
    """What `additional_config["roadkit"]` may hold.

    group_sizes  the pairings that adapters may have; one with another is refused when it is loaded
    """

    group_sizes: tuple[int, ...] = (64,)

    def __post_init__(self) -> None:
        sizes = self.group_sizes
        if not sizes or any(not isinstance(size, int) or size < 2 or size % 2 for size in sizes):
            raise RoadkitError(f"group_sizes must be even numbers of at least 2, got {list(sizes)}")


def plugin_options(vllm_config: Any) -> PluginOptions | None:
    """The options of an engine; None if it does not ask for RoAd. Raises `RoadkitError` for options that do not fit."""
    additional = getattr(vllm_config, "additional_config", None)
    if not isinstance(additional, dict) or KEY not in additional:
        return None
    given = additional[KEY]
    if not isinstance(given, dict):
        raise RoadkitError(
            f'additional_config["{KEY}"] must be an object such as {{"group_sizes": [64]}}, got {given!r}'
        )
    known = [field.name for field in fields(PluginOptions)]
    for name in given:
        if name not in known:
            raise RoadkitError(f'additional_config["{KEY}"]: unknown option {name!r}{nearest(name, known)}')
    if vllm_config.lora_config is None:
        raise RoadkitError("RoAd adapters go where LoRA adapters go: add --enable-lora (enable_lora=True in Python)")
    sizes = given.get("group_sizes", PluginOptions.group_sizes)
    if not isinstance(sizes, (list, tuple)):
        raise RoadkitError(f"group_sizes must be a list such as [64, 2], got {sizes!r}")
    return PluginOptions(group_sizes=tuple(dict.fromkeys(sizes)))


def is_supported() -> bool:
    """Is the installed vLLM one that this plugin was written against?"""
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(SUPPORTED).contains(_version(), prereleases=True)


def refuse() -> UnsupportedVllm:
    """The error for an engine that asks for RoAd on a vLLM that is not supported."""
    return UnsupportedVllm(
        f"roadkit's plugin supports vLLM {SUPPORTED}, this is {_version()}: install a vLLM in that range, "
        "or serve with `roadkit serve`, which needs none"
    )


def _version() -> str:
    import vllm

    return vllm.__version__
