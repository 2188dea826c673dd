"""The server's other engine: roadkit's requests and adapters on vLLM's asynchronous engine.

    engine = await AsyncVllmEngine.from_pretrained("smollm2", adapters={"formal": "adapters/formal"}, slots=8)
    stream = await engine.submit(Request(prompt="Hello", adapter="formal*0.7"))
    async for chunk in stream: print(chunk.text)

Same names as the embedded `Engine`, as coroutines. An adapter's files are copied when it is registered, so a folder
may change afterwards; each composition has a name, path and id of its own, so no cached block serves another. Ids count
up and are never given again.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from .. import expression, models, store
from ..adapter import Adapter
from ..engine.options import VllmOptions, takes
from ..engine.prompts import PromptEncoder
from ..engine.request import Chunk, Completion, Request, failed
from ..errors import AdapterError, RoadkitError, UnknownAdapter, nearest
from ..files import replaced_directory
from . import loading, register
from .params import sampling_params
from .stream import VllmStream


class Prepared(NamedTuple):
    """A checked request: what vLLM is given. `adapter` is an expression, a value, or None."""

    token_ids: list[int]
    parameters: Any
    adapter: str | Adapter | None


class AsyncVllmEngine:
    """Answers requests, each with its own adapter, on vLLM. Build it with `from_pretrained`; end it with `close`.

    llm        vLLM's `AsyncLLM`, started with RoAd on
    tokenizer  the model's, which renders chat messages as the embedded engine does
    folder     where a folder of copies of the registered adapters is made, and deleted by `close`; every worker must
               see it, so on several machines it is shared storage. By default this machine's temporary folder
    """

    def __init__(self, llm: Any, tokenizer: Any, *, folder: str | os.PathLike | None = None):
        self.llm, self.tokenizer = llm, tokenizer
        config = llm.vllm_config
        self.hf_config = config.model_config.hf_config
        self.max_context: int = config.model_config.max_model_len
        self.max_batch: int = config.scheduler_config.max_num_seqs
        vocab_size: int = config.model_config.get_vocab_size()
        self.prompts = PromptEncoder(tokenizer, vocab_size=vocab_size, max_context=self.max_context)
        self.max_idle: int = config.lora_config.max_cpu_loras  # compositions kept although no request uses them
        self._copies = tempfile.TemporaryDirectory(prefix="roadkit-vllm-", dir=folder)
        self.folder = Path(self._copies.name)
        self._sources: dict[str, loading.Source] = {}  # of the registered adapters
        self._values: dict[str, loading.Source] = {}  # of adapters given as values, by their content
        self._loaded: OrderedDict[str, Any] = OrderedDict()  # path → LoRARequest, least recently used first
        self._users: Counter[str] = Counter()
        self._streams: dict[str, VllmStream] = {}
        self._ids, self._numbers = itertools.count(), itertools.count(1)
        self._lock = asyncio.Lock()  # loading and evicting: one at a time, requests go on

    @classmethod
    async def from_pretrained(
        cls, name: str, *, adapters: Mapping[str, Adapter | str | os.PathLike] | None = None, **options: Any
    ) -> AsyncVllmEngine:
        """Start vLLM on a base model and register adapters. `options`: those of `start`."""
        engine = cls.start(name, **options)
        try:
            for adapter, source in (adapters or {}).items():
                await engine.add_adapter(adapter, source)
        except BaseException:
            engine.close()
            raise
        return engine

    @classmethod
    @takes(VllmOptions)
    def start(cls, name: str, *, dtype: str = "float32", **options: Any) -> AsyncVllmEngine:
        """Start vLLM on a base model, in or outside an event loop; all coroutines then belong to one loop.

        dtype    of weights and activations, as vLLM names it, unless the options name `weights`
        options  the fields of `VllmOptions`
        """
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        wanted = VllmOptions(**options)
        if wanted.weights == "int8":
            raise RoadkitError("weights int8: vLLM reads quantised checkpoints instead; name one as the model")
        register()
        slots = wanted.slots or wanted.max_batch
        arguments: dict[str, Any] = {
            "model": models.resolve(name),
            "dtype": wanted.weights or dtype,
            "max_model_len": wanted.max_context,
            "max_num_seqs": wanted.max_batch,
            "tensor_parallel_size": wanted.tensor_parallel_size,
            "pipeline_parallel_size": wanted.pipeline_parallel_size,
            "distributed_executor_backend": wanted.distributed_executor_backend,
            "enable_lora": True,
            "max_loras": slots,
            "max_cpu_loras": max(64, 2 * slots),
            "additional_config": {"roadkit": {"group_sizes": list(wanted.group_sizes)}},
            "disable_log_stats": True,
        }
        if wanted.cache_gib is not None:
            arguments["kv_cache_memory_bytes"] = int(wanted.cache_gib * 2**30)
        known = [field.name for field in fields(AsyncEngineArgs)]
        for option in wanted.arguments:
            if option not in known:
                raise RoadkitError(f"vLLM has no engine option {option!r}{nearest(option, known)}")
            if option in arguments:
                raise RoadkitError(f"the engine option {option!r} is roadkit's to set, here to {arguments[option]!r}")
        llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments, **wanted.arguments))
        return cls(llm, models.load_tokenizer(name), folder=wanted.copies)

    # ---- adapters ---------------------------------------------------------------------------------------------------

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the registered adapters."""
        return tuple(self._sources)

    async def add_adapter(self, name: str, source: Adapter | str | os.PathLike) -> None:
        """Register an adapter or a new version of one, checked by every worker; running requests keep theirs.

        Raises `AdapterError`; the name then means what it meant before.
        """
        if expression._NAME.fullmatch(name) is None:
            raise AdapterError(f"{name!r} is no adapter name: letters, digits and _.:/@- after a letter, digit or _")
        async with self._lock:
            copied = await asyncio.to_thread(self._copy, source)
            await self._load(loading.make_request((expression.Term(name, 1.0),), {name: copied}))
            self._sources[name] = copied
            await self._evict()
            self._sweep()

    async def remove_adapter(self, name: str) -> None:
        """Forget an adapter; accepted requests that use it finish."""
        async with self._lock:
            if name not in self._sources:
                raise UnknownAdapter(f"no adapter {name!r}")
            del self._sources[name]
            await self._evict()
            self._sweep()

    async def check(self, adapter: Adapter) -> None:
        """Have every worker load an adapter that no name needs. Raises `AdapterError` where one cannot serve it."""
        async with self._lock:
            await self._hold(adapter)
            await self._evict()

    # ---- requests ---------------------------------------------------------------------------------------------------

    def prepare(self, request: Request, *, adapter: Adapter | None = None) -> Prepared:
        """Check a request, all but its adapter; on any thread. `adapter`: a value instead of the request's expression.

        Raises `RequestError`.
        """
        token_ids = self.prompts.encode(request.prompt)
        self.prompts.check_room(len(token_ids), request.max_tokens)
        return Prepared(token_ids, sampling_params(request), request.adapter if adapter is None else adapter)

    async def submit(self, request: Request | Prepared, *, tenant: str = "") -> VllmStream:
        """Start a request. Raises `RequestError`, `ExpressionError` or `AdapterError`; other requests are not touched.

        tenant  requests of different tenants share no block of the prefix cache
        """
        prepared = request if isinstance(request, Prepared) else self.prepare(request)
        prompt: dict[str, Any] = {"prompt_token_ids": prepared.token_ids}
        if tenant:
            prompt["cache_salt"] = tenant
        lora_request = None
        if prepared.adapter is not None:
            lora_request = await self._acquire(prepared.adapter)
        stream = VllmStream(
            self.llm, f"roadkit-{next(self._ids)}", prompt, prepared.parameters, lora_request, ended=self._forget
        )
        self._streams[stream.id] = stream
        return stream

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Answer one request piece by piece; leaving the loop early cancels it."""
        stream = await self.submit(request)
        try:
            async for chunk in stream:
                yield chunk
        finally:
            await stream.cancel()

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer all requests, in their order. One that cannot be served comes back with finish_reason 'error'."""

        async def answer(request: Request) -> Completion:
            try:
                return await (await self.submit(request)).result()
            except RoadkitError as error:
                return failed(str(error), "request")

        return list(await asyncio.gather(*map(answer, requests)))

    async def cancel(self, stream_id: str) -> None:
        """Stop a request by the id of its stream; no effect on one that has finished."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            await stream.cancel()

    @property
    def alive(self) -> bool:
        """False once vLLM's engine has ended; nothing will be answered any more."""
        return not self.llm.errored

    def stats(self) -> dict[str, int]:
        """How many requests are in flight, adapters registered, compositions loaded and in use."""
        used = sum(count > 0 for count in self._users.values())
        return {
            "requests": len(self._streams),
            "adapters": len(self._sources),
            "loaded": len(self._loaded),
            "used": used,
        }

    def close(self) -> None:
        """End vLLM and its workers, and delete the copies of adapters that this engine made."""
        self.llm.shutdown()
        self._copies.cleanup()

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _forget(self, stream: VllmStream) -> None:
        self._streams.pop(stream.id, None)
        if stream.lora_request is not None:
            self._users[stream.lora_request.lora_path] -= 1

    def _copy(self, source: Adapter | str | os.PathLike) -> loading.Source:
        """Read an adapter once, validate it, and keep its two files under the content's name."""
        config, weights = store.serialize(source) if isinstance(source, Adapter) else store.read(source)
        adapter = store.parse(config, weights, origin=str(source))
        target = self.folder / adapter.content_hash[:32]
        if not target.is_dir():
            with replaced_directory(target) as folder:
                (folder / store.CONFIG).write_bytes(config)
                (folder / store.WEIGHTS).write_bytes(weights)
        return loading.Source(str(target), adapter.content_hash)

    async def _acquire(self, adapter: str | Adapter) -> Any:
        """The vLLM request of an expression or a value, loaded, with one more user."""
        request = self._known(adapter)  # does not wait while another adapter is being loaded
        if request is None:
            async with self._lock:
                request = await self._hold(adapter)
                self._users[request.lora_path] += 1
                try:
                    await self._evict()
                except BaseException:  # the caller gave up
                    self._users[request.lora_path] -= 1
                    raise
        else:
            self._users[request.lora_path] += 1
        return request

    def _known(self, adapter: str | Adapter) -> Any:
        if isinstance(adapter, str):
            request = loading.make_request(expression.parse(adapter, self._sources), self._sources)
        elif adapter.content_hash in self._values:
            request = self._request_of(adapter, self._values[adapter.content_hash])
        else:
            return None
        if request.lora_path in self._loaded:
            self._loaded.move_to_end(request.lora_path)
        return self._loaded.get(request.lora_path)

    async def _hold(self, adapter: str | Adapter) -> Any:
        if isinstance(adapter, str):
            return await self._load(loading.make_request(expression.parse(adapter, self._sources), self._sources))
        source = self._values.get(adapter.content_hash)
        if source is None:
            source = await asyncio.to_thread(self._copy, adapter)
        request = await self._load(self._request_of(adapter, source))
        self._values[adapter.content_hash] = source
        return request

    @staticmethod
    def _request_of(adapter: Adapter, source: loading.Source) -> Any:
        name = f"value-{adapter.content_hash[:16]}"
        return loading.make_request((expression.Term(name, 1.0),), {name: source})

    async def _load(self, request: Any) -> Any:
        """A composition's request once every worker has loaded it. Composed here first: errors are exact then."""
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
        needed |= {source.path for source in self._sources.values()}
        for entry in self.folder.iterdir():
            if str(entry) not in needed and not entry.name.startswith("."):  # a dot: being written
                shutil.rmtree(entry, ignore_errors=True)
