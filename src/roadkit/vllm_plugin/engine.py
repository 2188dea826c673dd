"""The server's other engine: roadkit's requests and adapters on vLLM's asynchronous engine.

    engine = await AsyncVllmEngine.from_pretrained("smollm2", adapters={"formal": "adapters/formal"}, slots=8)
    stream = await engine.submit(Request(prompt="Hello", adapter="formal*0.7"))
    async for chunk in stream:
        print(chunk.text)

It has the names of the embedded `Engine`, as coroutines. An adapter's files are copied when it is registered, so a folder
may change afterwards.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from .. import models
from ..adapter import Adapter
from ..engine.options import VllmOptions, takes
from ..engine.prompts import PromptEncoder
from ..engine.request import Chunk, Completion, Request, failed
from ..errors import RoadkitError, nearest
from . import register
from .compositions import Compositions
from .params import sampling_params
from .stream import VllmStream


class PreparedRequest(NamedTuple):
    """A checked request, as vLLM is given it.

    token_ids   of the prompt
    parameters  vLLM's `SamplingParams`
    adapter     an expression, an adapter as a value, or None for the base model
    """

    token_ids: list[int]
    parameters: Any
    adapter: str | Adapter | None


class AsyncVllmEngine:
    """Answers requests, each with its own adapter, on vLLM. Build it with `from_pretrained`; end it with `close`.

    llm        vLLM's `AsyncLLM`, started with RoAd on
    tokenizer  the model's, which renders chat messages as the embedded engine does
    folder     where a folder of copies of the registered adapters is made, and deleted by `close`. Every worker must see
               it, so on several machines it is shared storage. By default this machine's temporary folder
    """

    def __init__(self, llm: Any, tokenizer: Any, *, folder: str | os.PathLike | None = None):
        self.llm, self.tokenizer = llm, tokenizer
        config = llm.vllm_config
        self.hf_config = config.model_config.hf_config
        self.max_context: int = config.model_config.max_model_len
        self.max_batch: int = config.scheduler_config.max_num_seqs
        vocab_size: int = config.model_config.get_vocab_size()
        self.prompts = PromptEncoder(tokenizer, vocab_size=vocab_size, max_context=self.max_context)
        self.compositions = Compositions(llm, folder=folder)
        self._streams: dict[str, VllmStream] = {}
        self._ids = itertools.count()

    @classmethod
    async def from_pretrained(
        cls, name: str, *, adapters: Mapping[str, Adapter | str | os.PathLike] | None = None, **options: Any
    ) -> AsyncVllmEngine:
        """Start vLLM on a base model and register adapters. `options` are those of `start`."""
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
        """Start vLLM on a base model, inside or outside an event loop. All coroutines then belong to one loop.

        dtype    the type of weights and activations, as vLLM names it; the option `weights` goes before it
        options  the fields of `VllmOptions`

        Raises `ModelError` for the model, `RoadkitError` for the options.
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
        return self.compositions.names

    async def add_adapter(self, name: str, source: Adapter | str | os.PathLike) -> None:
        """Register an adapter, or a new version of one, after every worker has loaded it. Running requests keep theirs.

        Raises `AdapterError`; the name then means what it meant before.
        """
        await self.compositions.add(name, source)

    async def remove_adapter(self, name: str) -> None:
        """Forget an adapter; accepted requests that use it finish. Raises `UnknownAdapter`."""
        await self.compositions.remove(name)

    async def check(self, adapter: Adapter) -> None:
        """Have every worker load an adapter that has no name. Raises `AdapterError` if one cannot serve it."""
        await self.compositions.check(adapter)

    # ---- requests ---------------------------------------------------------------------------------------------------

    def prepare(self, request: Request, *, adapter: Adapter | None = None) -> PreparedRequest:
        """Check all of a request but its adapter, on any thread. Raises `RequestError`.

        adapter  an adapter as a value, instead of the request's expression
        """
        token_ids = self.prompts.encode(request.prompt)
        self.prompts.check_room(len(token_ids), request.max_tokens)
        return PreparedRequest(token_ids, sampling_params(request), request.adapter if adapter is None else adapter)

    async def submit(self, request: Request | PreparedRequest, *, tenant: str = "") -> VllmStream:
        """Start a request; other requests are not touched.

        tenant  requests of different tenants share no block of the prefix cache

        Raises `RequestError`, `ExpressionError` or `AdapterError`.
        """
        prepared = request if isinstance(request, PreparedRequest) else self.prepare(request)
        prompt: dict[str, Any] = {"prompt_token_ids": prepared.token_ids}
        if tenant:
            prompt["cache_salt"] = tenant
        lora_request = None
        if prepared.adapter is not None:
            lora_request = await self.compositions.acquire(prepared.adapter)
        stream = VllmStream(
            self.llm, f"roadkit-{next(self._ids)}", prompt, prepared.parameters, lora_request, ended=self._forget
        )
        self._streams[stream.id] = stream
        return stream

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Answer one request piece by piece. Leaving the loop early cancels it."""
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
        """How many requests are in flight, adapters registered, compositions loaded, and of those in use."""
        return {
            "requests": len(self._streams),
            "adapters": len(self.compositions.names),
            "loaded": self.compositions.num_loaded,
            "used": self.compositions.num_used,
        }

    def close(self) -> None:
        """End vLLM and its workers, and delete the copies of adapters that this engine made."""
        self.llm.shutdown()
        self.compositions.close()

    def _forget(self, stream: VllmStream) -> None:
        self._streams.pop(stream.id, None)
        if stream.lora_request is not None:
            self.compositions.release(stream.lora_request)
