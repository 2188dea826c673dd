"""An adapter is loaded and checked before its first request is accepted: a bad one costs a request, not the engine.

    guard_front_ends()      # vLLM's LLMEngine and AsyncLLM now check an adapter when the first request with it arrives

vLLM loads an adapter when it schedules the request, and an exception there ends the engine (0.32). Both front ends can
load an adapter beforehand, through their own `add_lora`. They are made to, and each rank answers in words (see `worker`).
"""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict
from typing import Any

from ..errors import AdapterError
from .support import plugin_options
from .worker import METHOD

_REMEMBERED = 65536  # adapters that an engine need not ask about again


def guard_front_ends() -> None:
    """Wrap `add_lora` and `add_request` of vLLM's two front ends. Calls of engines without RoAd pass through."""
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.llm_engine import LLMEngine

    LLMEngine.add_lora = _checked(LLMEngine.add_lora)
    AsyncLLM.add_lora = _checked_async(AsyncLLM.add_lora)
    LLMEngine.add_request = _guarded(LLMEngine.add_request)
    AsyncLLM.add_request = _guarded_async(AsyncLLM.add_request)


def _checked(original: Any) -> Any:
    """`add_lora` that asks every rank, and takes the adapter back if only some of them loaded it."""

    @functools.wraps(original)
    def add_lora(self: Any, lora_request: Any) -> bool:
        if plugin_options(self.vllm_config) is None:
            return original(self, lora_request)
        replies = self.collective_rpc(METHOD, args=_fields(lora_request))
        if "" in replies and any(replies):
            self.remove_lora(lora_request.lora_int_id)
        return _accepted_by(replies)

    return add_lora


def _checked_async(original: Any) -> Any:
    """The same for a coroutine."""

    @functools.wraps(original)
    async def add_lora(self: Any, lora_request: Any) -> bool:
        if plugin_options(self.vllm_config) is None:
            return await original(self, lora_request)
        replies = await self.collective_rpc(METHOD, args=_fields(lora_request))
        if "" in replies and any(replies):
            await self.remove_lora(lora_request.lora_int_id)
        return _accepted_by(replies)

    return add_lora


def _fields(request: Any) -> tuple[str, int, str, bool]:
    return request.lora_name, request.lora_int_id, request.lora_path, request.load_inplace


def _accepted_by(replies: list[str]) -> bool:
    """True if every rank loaded the adapter. Raises `AdapterError` with the reason of the first that did not."""
    for reason in filter(None, replies):
        raise AdapterError(reason)
    return True


def _guarded(original: Any) -> Any:
    """`add_request` that adds the request's adapter first, if the engine has not accepted it before."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def add_request(self: Any, *args: Any, **options: Any) -> Any:
        request = _unknown_adapter(self, signature, args, options)
        if request is not None:
            self.add_lora(request)
            _remember(self, request)
        return original(self, *args, **options)

    return add_request


def _guarded_async(original: Any) -> Any:
    """The same for a coroutine."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    async def add_request(self: Any, *args: Any, **options: Any) -> Any:
        request = _unknown_adapter(self, signature, args, options)
        if request is not None:
            await self.add_lora(request)
            _remember(self, request)
        return await original(self, *args, **options)

    return add_request


def _unknown_adapter(engine: Any, signature: inspect.Signature, args: tuple, options: dict) -> Any:
    """The adapter of this call, if RoAd is on and the engine has not accepted it before; else None."""
    if plugin_options(engine.vllm_config) is None:
        return None
    arguments = signature.bind(engine, *args, **options).arguments
    request = arguments.get("lora_request") or getattr(arguments["prompt"], "lora_request", None)
    if request is None or _key(request) in _accepted(engine):
        return None
    return request


def _remember(engine: Any, request: Any) -> None:
    accepted = _accepted(engine)
    accepted[_key(request)] = None
    if len(accepted) > _REMEMBERED:
        accepted.popitem(last=False)


def _accepted(engine: Any) -> OrderedDict:
    return engine.__dict__.setdefault("roadkit_accepted", OrderedDict())


def _key(request: Any) -> tuple:
    return request.lora_int_id, request.lora_name, request.lora_path, request.load_inplace
