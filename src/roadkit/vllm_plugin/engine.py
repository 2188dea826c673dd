"""The server's other engine: roadkit's requests and adapters on vLLM's asynchronous engine.

    engine = await AsyncVllmEngine.from_pretrained("smollm2", adapters={"formal": "adapters/formal"}, slots=8)
    stream = await engine.submit(Request(prompt="Hello", adapter="formal*0.7"))
    async for chunk in stream: print(chunk.text)

Same names as the embedded `Engine`, as coroutines. An adapter's files are copied when it is registered, so a folder
may change afterwards; each composition has a name, path and id of its own, so no cached block serves another.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import expression, models, store
from ..adapter import Adapter
from ..engine.request import Chunk, Completion, Request
from ..errors import AdapterError, ExpressionError, RequestError, RoadkitError
from ..files import replaced_directory
from . import loading, register
from .params import sampling_params
from .stream import VllmStream


class AsyncVllmEngine:
    """Answers requests, each with its own adapter, on vLLM. Build it with `from_pretrained`; end it with `close`.

    llm        vLLM's `AsyncLLM`, started with RoAd on
    tokenizer  the model's, which renders chat messages as the embedded engine does
    folder     where registered adapters are copied to; every worker must see it, so on several machines it is shared
               storage. By default a temporary folder of this machine
    """

    def __init__(self, llm: Any, tokenizer: Any, *, folder: str | os.PathLike | None = None):
        self.llm, self.tokenizer = llm, tokenizer
        config = llm.vllm_config
        self.max_context: int = config.model_config.max_model_len
        self.vocab_size: int = config.model_config.get_vocab_size()
        self.max_idle: int = config.lora_config.max_cpu_loras  # compositions kept although no request uses them
        self._own = None if folder is not None else tempfile.TemporaryDirectory(prefix="roadkit-vllm-")
        self.folder = Path(folder if folder is not None else self._own.name)  # type: ignore[union-attr]
        self._sources: dict[str, loading.Source] = {}
        self._loaded: OrderedDict[str, Any] = OrderedDict()  # path → LoRARequest, least recently used first
        self._users: Counter[str] = Counter()
        self._streams: dict[str, VllmStream] = {}
        self._ids, self._numbers = itertools.count(), itertools.count(1)
        self._lock = asyncio.Lock()  # loading and evicting: one at a time, requests go on

    @classmethod
    async def from_pretrained(
        cls,
        name: str,
        *,
        adapters: Mapping[str, Adapter | str | os.PathLike] | None = None,
        dtype: str = "float32",
        max_batch: int = 8,
        slots: int | None = None,
        max_context: int | None = None,
        group_sizes: Sequence[int] = (64,),
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        distributed_executor_backend: str | None = None,
        folder: str | os.PathLike | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> AsyncVllmEngine:
        """Start vLLM on a base model. `options` are further fields of vLLM's `AsyncEngineArgs`, passed as they are."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        register()
        slots = slots or max_batch
        arguments = AsyncEngineArgs(
            model=models.resolve(name),
            dtype=dtype,  # type: ignore[arg-type]
            max_model_len=max_context,  # type: ignore[arg-type]
            max_num_seqs=max_batch,
            tensor_parallel_size=tensor_parallel_size,
            pipeline_parallel_size=pipeline_parallel_size,
            distributed_executor_backend=distributed_executor_backend,
            enable_lora=True,
            max_loras=slots,
            max_cpu_loras=max(64, 2 * slots),
            additional_config={"roadkit": {"group_sizes": list(group_sizes)}},
            **dict(options or {}),
        )
        engine = cls(AsyncLLM.from_engine_args(arguments), models.load_tokenizer(name), folder=folder)
        try:
            for adapter, source in (adapters or {}).items():
                await engine.add_adapter(adapter, source)
        except BaseException:
            engine.close()
            raise
        return engine

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
            previous = self._sources.get(name)
            self._sources[name] = copied
            try:
                await self._load((expression.Term(name, 1.0),))
            except BaseException:
                del self._sources[name]
                if previous is not None:
                    self._sources[name] = previous
                raise
            await self._evict()

    async def remove_adapter(self, name: str) -> None:
        """Forget an adapter; accepted requests that use it finish."""
        if name not in self._sources:
            raise ExpressionError(f"no adapter {name!r}")
        async with self._lock:
            del self._sources[name]
            await self._evict()

    # ---- requests ---------------------------------------------------------------------------------------------------

    async def submit(self, request: Request) -> VllmStream:
        """Start a request. Raises `RequestError`, `ExpressionError` or `AdapterError`; other requests are not touched."""
        token_ids = self._encode(request)
        parameters = sampling_params(request)
        lora_request = None
        if request.adapter is not None:
            async with self._lock:
                lora_request = await self._load(expression.parse(request.adapter, self._sources))
                self._users[lora_request.lora_path] += 1
                await self._evict()
        stream = VllmStream(
            self.llm, f"roadkit-{next(self._ids)}", token_ids, parameters, lora_request, ended=self._forget
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
                return Completion(text="", token_ids=[], finish_reason="error", error=str(error))

        return list(await asyncio.gather(*map(answer, requests)))

    async def cancel(self, stream_id: str) -> None:
        """Stop a request by the id of its stream; no effect on one that has finished."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            await stream.cancel()

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
        if self._own is not None:
            self._own.cleanup()

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

    async def _load(self, terms: tuple[expression.Term, ...]) -> Any:
        """The vLLM request of a composition, loaded by every worker. Composed here first: errors are exact then."""
        request = loading.make_request(terms, self._sources)
        known = self._loaded.get(request.lora_path)
        if known is not None:
            self._loaded.move_to_end(request.lora_path)
            return known
        await asyncio.to_thread(loading.read, request.lora_path)
        request.lora_int_id = next(self._numbers)
        try:
            await self.llm.add_lora(request)
        except RoadkitError:
            raise
        except Exception as error:  # across processes, vLLM hands on the text alone
            text = str(error).removeprefix("Call to add_lora method failed: ")
            raise AdapterError(text) from error
        self._loaded[request.lora_path] = request
        return request

    async def _evict(self) -> None:
        """Let vLLM forget compositions beyond `max_idle` that no request uses, and delete files that nothing needs."""
        idle = [path for path in self._loaded if self._users[path] <= 0]
        for path in idle[: max(0, len(idle) - self.max_idle)]:
            await self.llm.remove_lora(self._loaded.pop(path).lora_int_id)
            del self._users[path]
        needed = {source.path for source in self._sources.values()}
        needed |= {source for path in self._loaded for source in loading.sources_of(path)}
        for entry in self.folder.iterdir() if self._own is not None else ():
            if str(entry) not in needed and not entry.name.startswith("."):
                shutil.rmtree(entry, ignore_errors=True)

    def _encode(self, request: Request) -> list[int]:
        prompt = request.prompt
        if isinstance(prompt, str):
            token_ids = list(self.tokenizer(prompt)["input_ids"])
        elif prompt and isinstance(prompt[0], dict):
            if not getattr(self.tokenizer, "chat_template", None):
                raise RequestError("the model has no chat template; send the prompt as text")
            try:
                text = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
            except Exception as error:  # jinja's errors: a role or message that the template refuses
                raise RequestError(f"the model's chat template refuses these messages: {error}") from error
            token_ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        else:
            token_ids = [token for token in prompt if isinstance(token, int)]
        if not token_ids:
            raise RequestError("the prompt is empty: it has no tokens")
        outside = next((token for token in token_ids if not 0 <= token < self.vocab_size), None)
        if outside is not None:
            raise RequestError(f"token id {outside} is outside the vocabulary of {self.vocab_size}")
        if len(token_ids) + request.max_tokens > self.max_context:
            raise RequestError(
                f"the prompt has {len(token_ids)} tokens and max_tokens is {request.max_tokens}, "
                f"together at most {self.max_context} fit the context"
            )
        return token_ids
