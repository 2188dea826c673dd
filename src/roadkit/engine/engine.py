"""`Engine`: continuous batching over a bank of adapters, for any Hugging Face causal language model.

    engine = Engine.from_pretrained("smollm2", adapters={"formal": "adapters/formal"}, max_batch=8)
    engine.generate([Request(prompt="Hello", adapter="formal*0.7"), Request(prompt="Hello")])

Requests join and leave between steps. Whoever waits for an answer drives the steps, so several threads may share an
engine, and none is needed.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from .. import models
from ..errors import AdapterError, ModelError, RoadkitError
from ..expression import Term
from ..kinds import AnyAdapter
from .bank import Bank
from .bank.slots import Row
from .cache import PAGE, PagedCache, pages_that_fit
from .grammar import Grammars
from .logprobs import token_logprobs
from .options import EngineOptions, takes
from .prompts import PromptEncoder
from .request import Chunk, Completion, Fault, FinishReason, Request, TokenLogprob, failed
from .runner import Runner, Scored
from .sampler import sample
from .scheduler import Scheduler
from .sequence import TokenSequence
from .stream import Stream
from .text import Detokenizer, end_ids_of

log = logging.getLogger("roadkit.engine")

CACHE_GIB = 1.0  # keys and values, unless the options say otherwise


class Engine:
    """Answers requests, each with its own adapter, in one batch. Build it with `Engine.from_pretrained`.

    model, tokenizer  a causal language model, which the engine takes over (its weights are packed), and its tokenizer
    adapters          name → `Adapter`, `Intervention` or directory
    options           the fields of `EngineOptions`: max_batch, slots, max_context, cache_gib, weights, …
    """

    @takes(EngineOptions)
    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        adapters: Mapping[str, AnyAdapter | str | os.PathLike] | None = None,
        **options: Any,
    ):
        wanted = EngineOptions(**options)
        if not model.can_generate():
            raise ModelError(f"{type(model).__name__} has no language-model head to generate with")
        config = model.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None) or 1 << 30
        longest = min(wanted.max_context or limit, limit)
        self.tokenizer = tokenizer
        self.end_ids = end_ids_of(model, tokenizer)
        num_pages = pages_that_fit(
            model,
            gib=CACHE_GIB if wanted.cache_gib is None else wanted.cache_gib,
            max_batch=wanted.max_batch,
            max_context=longest,
        )
        cache = PagedCache(num_pages, device=model.device)
        self.max_context = min(longest, cache.num_pages * PAGE)
        self.prompts = PromptEncoder(tokenizer, vocab_size=config.vocab_size, max_context=self.max_context)
        self.runner = Runner(model, cache, weights=wanted.weights)
        self.bank = Bank(
            model,
            adapters,
            slots=wanted.slots or max(2 * wanted.max_batch, 16),
            bind=self.runner.bind,
            excluded=(model.get_output_embeddings(),),
        )
        self.scheduler = Scheduler(
            cache,
            acquire=self._acquire,
            release=self.bank.release,
            max_batch=wanted.max_batch,
            max_waiting=wanted.max_waiting,
        )
        self._grammars = Grammars(tokenizer, config.vocab_size)
        self._lock = threading.RLock()
        self._ids = itertools.count()

    @classmethod
    @takes(EngineOptions)
    def from_pretrained(
        cls,
        name: str,
        *,
        adapters: Mapping[str, AnyAdapter | str | os.PathLike] | None = None,
        dtype: torch.dtype | None = None,
        device: str | None = None,
        **options: Any,
    ) -> Engine:
        """Load a base model (hub id, folder, or bundled name such as `smollm2`) and build an engine on it.

        dtype     None: float32 on the CPU, which packs `weights` itself; on a GPU `weights`, or the checkpoint's own type
        device    None: the GPU if there is one
        options   the fields of `EngineOptions`
        """
        weights = EngineOptions(**options).weights
        device = models.best_device(device)
        own = "auto" if weights in (None, "int8") else weights
        model = models.load_causal(name, dtype=dtype or ("float32" if device == "cpu" else own), device=device)
        return cls(model, models.load_tokenizer(name), adapters=adapters, **options)

    # ---- adapters -----------------------------------------------------------------------------------------------

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the registered adapters."""
        return self.bank.names

    def add_adapter(self, name: str, source: AnyAdapter | str | os.PathLike) -> None:
        """Register an adapter or a new version of one; running requests keep the version they started with."""
        with self._lock:
            self.bank.add(name, source)

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter; running requests that use it finish."""
        with self._lock:
            self.bank.remove(name)

    # ---- requests -----------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer all requests, in their order. One that cannot be served comes back with finish_reason 'error'."""
        answers: list[Stream | Completion] = []
        try:
            for request in requests:
                try:
                    sequence = self.prepare(request)
                    while self.scheduler.full and self.step():
                        pass
                    answers.append(self.enqueue(sequence))
                except RoadkitError as error:
                    answers.append(failed(str(error), "request"))
            return [answer.result() if isinstance(answer, Stream) else answer for answer in answers]
        finally:  # an interrupt leaves nothing running
            for answer in answers:
                if isinstance(answer, Stream):
                    answer.cancel()

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Answer one request piece by piece; leaving the loop early cancels it."""
        stream = self.submit(request)
        try:
            yield from stream
        finally:
            stream.cancel()

    def submit(self, request: Request) -> Stream:
        """Queue a request. Raises `RequestError`, `ExpressionError` or `QueueFull`; other requests are not touched."""
        with self._lock:
            return self.enqueue(self.prepare(request))

    def prepare(self, request: Request, *, terms: tuple[Term, ...] | None = None, tenant: str = "") -> TokenSequence:
        """Tokenise and check a request without waiting for a running step; `enqueue` takes the result.

        terms   what `request.adapter` was parsed to elsewhere
        tenant  requests share computed prompt beginnings within a tenant only
        """
        terms = self.bank.parse(request.adapter) if terms is None else terms
        token_ids = self.prompts.encode(request.prompt)
        self.prompts.check_room(len(token_ids), request.max_tokens)
        vocab = self.prompts.vocab_size
        return TokenSequence(
            id=next(self._ids),
            request=request,
            terms=terms,
            tenant=tenant,
            token_ids=token_ids,
            seed=random.getrandbits(63) if request.seed is None else request.seed,
            end_ids=frozenset(token for token in {*self.end_ids, *request.stop_token_ids} if 0 <= token < vocab),
            detokenizer=Detokenizer(self.tokenizer, request.stop, token_ids),
            grammar=None if request.json_schema is None else self._grammars.json(request.json_schema),
        )

    def enqueue(self, sequence: TokenSequence) -> Stream:
        """Queue what `prepare` returned. Raises `QueueFull`."""
        with self._lock:
            stream = Stream(sequence, step=self.step, cancel=self.cancel)
            self.scheduler.submit(sequence)
            return stream

    def step(self) -> bool:
        """Run one step for everything that is running; False if there is nothing to do.

        If the step fails, its requests end with an error and the engine lives on. Only a lost GPU, with which no later step
        could do better, is raised.
        """
        with self._lock:
            batch = self.scheduler.next_batch()
            while self.scheduler.failed:
                sequence, error = self.scheduler.failed.pop()
                self._finish(sequence, "error", error=str(error), fault="request")
            if not batch:
                return bool(self.scheduler.running or self.scheduler.waiting)
            try:
                scored = self.runner.step(batch, self.bank)
                self.scheduler.advance(batch)
                self._append(scored)
            except Exception as error:  # the step's requests fail, the engine and the queue live on
                log.exception("a step failed")
                for sequence, _ in batch:
                    self._finish(sequence, "error", error=f"{type(error).__name__}: {error}", fault="engine")
                if models.device_lost(self.runner.model.device):
                    raise
            return True

    def cancel(self, sequence: TokenSequence) -> None:
        """Stop a request now; its row and pages are free for the next step. No effect once it has finished."""
        with self._lock:
            self._finish(sequence, "cancelled")

    # ---- inside -------------------------------------------------------------------------------------------------

    def _acquire(self, sequence: TokenSequence) -> Row:
        row = self.bank.acquire(sequence.terms)
        if self.bank.heads_of(row):
            self.bank.release(row)
            names = ", ".join(sorted(self.bank.heads_of(row)))
            raise AdapterError(
                f"{sequence.request.adapter!r} brings whole modules ({names}); the engine serves rotations only"
            )
        return row

    def _append(self, scored: list[Scored]) -> None:
        """Choose and record the next token of every sequence that is through with its tokens."""
        for sequence, _, prompt in scored:
            if prompt is not None:
                sequence.record_prompt(prompt)
        ready = [item for item in scored if not item.sequence.remaining]
        if not ready:
            return
        sequences = [item.sequence for item in ready]
        logits = torch.stack([item.last for item in ready])
        counts = [sequence.request.logprobs for sequence in sequences]
        raw = logits.clone() if any(count is not None for count in counts) else logits
        finite = logits.sum(dim=-1).isfinite().tolist()
        tokens = sample(logits, sequences)
        logprobs = token_logprobs(raw, tokens, counts)
        for sequence, fine, token, logprob in zip(sequences, finite, tokens, logprobs, strict=True):
            if fine:
                self._push(sequence, token, logprob)
            else:
                error = "the model's logits are not finite with this adapter"
                self._finish(sequence, "error", error=error, fault="request")

    def _push(self, sequence: TokenSequence, token: int, logprob: TokenLogprob | None) -> None:
        text, reason = sequence.append(token, logprob)
        if reason is None:
            sequence.emit(Chunk(text, (token,), () if logprob is None else (logprob,), None))
        else:
            self._finish(sequence, reason, text=text, num_new=1)

    def _finish(
        self,
        sequence: TokenSequence,
        reason: FinishReason,
        *,
        text: str = "",
        num_new: int = 0,
        error: str | None = None,
        fault: Fault | None = None,
    ) -> None:
        """End a request wherever it is. `text` and `num_new` tokens were not emitted yet."""
        if sequence.finished is None:
            self.scheduler.finish(sequence)
            sequence.emit(sequence.finish(reason, text=text, num_new=num_new, error=error, fault=fault))
