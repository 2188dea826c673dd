"""The adapters of a vLLM engine: registered under names, loaded as compositions, forgotten once no request uses them.

    compositions = Compositions(llm, folder=None)
    await compositions.add("formal", "adapters/formal")
    request = await compositions.acquire("formal*0.7")      # a LoRARequest that every worker has loaded
    compositions.release(request)

Each composition has a name, path and id of its own, so no cached block serves another. Ids count up and are never given
again.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

from .. import expression
from ..adapter import Adapter
from ..errors import UnknownAdapter
from . import loading
from .copies import Copies

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest


class Compositions:
    """What an engine's requests may name, and what its workers have loaded of it.

    llm     vLLM's `AsyncLLM`
    folder  where the copies of adapters are made; see `Copies`
    """

    def __init__(self, llm: Any, *, folder: str | os.PathLike | None):
        self.llm, self.copies = llm, Copies(folder)
        self.max_idle: int = llm.vllm_config.lora_config.max_cpu_loras  # loaded ones kept although no request uses them
        self._sources: dict[str, loading.Source] = {}  # of the registered adapters, by name
        self._values: dict[str, loading.Source] = {}  # of adapters given as values, by content
        self._loaded: OrderedDict[str, LoRARequest] = OrderedDict()  # by path, least recently used first
        self._users: Counter[str] = Counter()  # requests in flight, by path
        self._numbers = itertools.count(1)
        self._lock = asyncio.Lock()  # one at a time loads or evicts, while requests go on

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the registered adapters."""
        return tuple(self._sources)

    @property
    def num_loaded(self) -> int:
        """How many compositions the workers have loaded."""
        return len(self._loaded)

    @property
    def num_used(self) -> int:
        """How many of them requests in flight use."""
        return sum(count > 0 for count in self._users.values())

    async def add(self, name: str, source: Adapter | str | os.PathLike) -> None:
        """Register an adapter, or a new version of one, after every worker has loaded it. Raises `AdapterError`."""
        expression.check_name(name)
        async with self._lock:
            copied = await asyncio.to_thread(self.copies.make, source)
            await self._load(_request_of(name, copied))
            self._sources[name] = copied
            await self._evict()
            self._sweep()

    async def remove(self, name: str) -> None:
        """Forget an adapter; accepted requests that use it finish. Raises `UnknownAdapter`."""
        async with self._lock:
            if name not in self._sources:
                raise UnknownAdapter(f"no adapter {name!r}")
            del self._sources[name]
            await self._evict()
            self._sweep()

    async def check(self, adapter: Adapter) -> None:
        """Have every worker load an adapter that has no name. Raises `AdapterError` if one cannot serve it."""
        async with self._lock:
            await self._hold(adapter)
            await self._evict()

    async def acquire(self, adapter: str | Adapter) -> LoRARequest:
        """The vLLM request of an expression or a value, loaded, and kept until as many calls of `release`.

        Raises `ExpressionError`, `AdapterError` or `AlgebraError`.
        """
        request = self._find(adapter)  # does not wait while another adapter is being loaded
        if request is not None:
            self._users[request.lora_path] += 1
            return request
        async with self._lock:
            request = await self._hold(adapter)
            self._users[request.lora_path] += 1
            try:
                await self._evict()
            except BaseException:  # the caller gave up
                self._users[request.lora_path] -= 1
                raise
        return request

    def release(self, request: LoRARequest) -> None:
        """One request in flight less uses this composition."""
        self._users[request.lora_path] -= 1

    def close(self) -> None:
        """Delete the copies of adapters."""
        self.copies.close()

    def _find(self, adapter: str | Adapter) -> LoRARequest | None:
        """The request of a composition that is loaded, else None."""
        if isinstance(adapter, str):
            request = self._composed(adapter)
        elif adapter.content_hash in self._values:
            request = _request_of(_name_of(adapter), self._values[adapter.content_hash])
        else:
            return None
        if request.lora_path in self._loaded:
            self._loaded.move_to_end(request.lora_path)
        return self._loaded.get(request.lora_path)

    async def _hold(self, adapter: str | Adapter) -> LoRARequest:
        """The request of a composition, loaded now if it is not yet."""
        if isinstance(adapter, str):
            return await self._load(self._composed(adapter))
        source = self._values.get(adapter.content_hash)
        if source is None:
            source = await asyncio.to_thread(self.copies.make, adapter)
        request = await self._load(_request_of(_name_of(adapter), source))
        self._values[adapter.content_hash] = source
        return request

    def _composed(self, text: str) -> LoRARequest:
        return loading.make_request(expression.parse(text, self._sources), self._sources)

    async def _load(self, request: LoRARequest) -> LoRARequest:
        """Have every worker load a composition. It is composed here first, because errors are exact then."""
        known = self._loaded.get(request.lora_path)
        if known is not None:
            self._loaded.move_to_end(request.lora_path)
            return known
        await asyncio.to_thread(loading.read, request.lora_path)
        request.lora_int_id = next(self._numbers)
        await self.llm.add_lora(request)
        self._loaded[request.lora_path] = request
        return request

    async def _evict(self) -> None:
        """Let vLLM forget compositions beyond `max_idle` that no request uses."""
        idle = [path for path in self._loaded if self._users[path] <= 0]
        for path in idle[: max(0, len(idle) - self.max_idle)]:
            if self._users[path] <= 0:  # nobody came while another was removed
                del self._users[path]
                await self.llm.remove_lora(self._loaded.pop(path).lora_int_id)
        if len(idle) > self.max_idle:
            self._sweep()

    def _sweep(self) -> None:
        """Delete the copies that nothing needs."""
        needed = {source for path in self._loaded for source in loading.sources_of(path)}
        self._values = {content: source for content, source in self._values.items() if source.path in needed}
        self.copies.keep_only(needed | {source.path for source in self._sources.values()})


def _name_of(adapter: Adapter) -> str:
    """What vLLM calls an adapter that was given as a value."""
    return f"value-{adapter.content_hash[:16]}"


def _request_of(name: str, source: loading.Source) -> LoRARequest:
    """The vLLM request of one adapter at full strength."""
    return loading.make_request((expression.Term(name, 1.0),), {name: source})
