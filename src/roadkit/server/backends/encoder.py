"""`EncoderEngine`: any Hugging Face encoder behind the server's seam, one adapter expression a text, in mixed batches.

    backend = EncoderEngine(models.load_encoder("minilm"), models.load_tokenizer("minilm"))
    backend.submit(EncoderJob(...))          # `done` is called on the event loop with a vector, or an error

Embeddings are the mean of the last hidden states over the text's tokens, of length 1. A model with a classification
head, its own or one that an adapter brings, gives logits instead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from ... import models
from ...engine.bank import Bank
from ...engine.prompts import PromptEncoder
from ...errors import AdapterError, ContextTooLong, RequestError, RoadkitError
from ...expression import Term
from ...kinds import AnyAdapter
from .base import Job, Stats
from .fit import check_fit, of_layers
from .queue import FairQueue
from .worker import Worker

log = logging.getLogger("roadkit.server")

MAX_HEAD_BYTES = 64 << 20  # of the whole modules that one adapter brings


@dataclass(eq=False)
class EncoderJob:
    """One text for one adapter (None: the base). `kind` is 'embed' or 'classify'."""

    token_ids: list[int]
    adapter: str | None
    kind: str
    tenant: str
    done: Callable[[list[float] | Exception], None]


class EncoderEngine:
    """A `Backend` for encoders: adapters as everywhere, `submit` takes `EncoderJob`s; it does not generate."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        max_batch: int = 32,
        max_queue: int = 2048,  # texts, half of them one tenant's
        own_head: bool = True,
    ):
        self.own_head = own_head  # else only adapters that bring a head classify
        self.model, self.tokenizer, self.max_batch = model.eval(), tokenizer, max_batch
        self.classifies = type(model).__name__.endswith("ForSequenceClassification")
        self.max_context = _longest(model)
        self.bank = Bank(model, slots=max(2 * max_batch, 16))
        half = max(1, max_queue // 2)
        self._queue: FairQueue[EncoderJob] = FairQueue(max_waiting=max_queue, max_waiting_per_tenant=half)
        self._worker = Worker("roadkit-encoder", self._run)
        self._steps, self._busy, self._running = 0, 0.0, 0
        self._lost = False  # the GPU: then the thread ends, and /health says so
        vocab_size: int = model.config.vocab_size
        self.prompts = PromptEncoder(tokenizer, vocab_size=vocab_size, max_context=self.max_context)

    def start(self) -> None:
        self._worker.start()

    def close(self) -> None:
        self._worker.close()
        self.bank.close()

    @property
    def alive(self) -> bool:
        return self._worker.alive

    def encode(self, prompt: Any) -> list[int]:
        """A text's tokens; more than the model reads are refused, not cut."""
        token_ids = self.prompts.encode(prompt)
        if len(token_ids) > self.max_context:
            raise ContextTooLong(f"a text has {len(token_ids)} tokens, 1 to {self.max_context} fit the context")
        return token_ids

    def prepare(self, request: Any, *, terms: tuple[Term, ...], tenant: str) -> Any:
        raise RequestError("this server's model is an encoder: it answers /v1/embeddings and /v1/classify")

    def submit(self, job: Job | EncoderJob) -> None:
        assert isinstance(job, EncoderJob), type(job)
        self._queue.put(job.tenant, job)
        self._worker.tell(None)

    def cancel(self, job: Job | EncoderJob) -> None:
        """Take a waiting job out; one that runs is done within a batch."""
        assert isinstance(job, EncoderJob), type(job)
        if self._queue.remove(job.tenant, job):
            job.done(RequestError("the request was cancelled"))

    def check(self, adapter: AnyAdapter) -> None:
        heads = of_layers(adapter).heads
        size = sum(tensor.nbytes for saved in heads.values() for tensor in saved.values())
        if size > MAX_HEAD_BYTES:
            raise AdapterError(f"the adapter brings {size} bytes of whole modules, at most {MAX_HEAD_BYTES} are taken")
        if heads and not self.classifies:
            raise AdapterError(f"the adapter brings a head ({', '.join(sorted(heads)[:3])}), this model has none")
        check_fit(self.model, adapter)

    def load(self, name: str, adapter: AnyAdapter) -> None:
        self._worker.tell(partial(self.bank.add, name, adapter))

    def unload(self, name: str) -> None:
        self._worker.tell(partial(self.bank.remove, name))

    def stats(self) -> Stats:
        resident = len(self.bank.resident())
        return Stats(self._running, len(self._queue), resident, self._steps, self._busy)

    # ---- the engine's thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._worker.closing and not self._lost:
            self._worker.listen(wait=not len(self._queue))
            batch: list[EncoderJob] = []
            while len(batch) < self.max_batch and (job := self._queue.pop()) is not None:
                if batch and job.kind != batch[0].kind:
                    self._answer([job])
                else:
                    batch.append(job)
            if batch:
                self._answer(batch)
        while (job := self._queue.pop()) is not None:
            self._worker.answer(partial(job.done, RequestError("the server stops")))

    def _answer(self, batch: list[EncoderJob]) -> None:
        self._worker.listen()  # adapters were told before their jobs were queued, but maybe after the last look
        start, self._running = time.monotonic(), len(batch)
        try:
            results: list[list[float] | Exception] = list(self._forward(batch))
        except Exception as error:
            if len(batch) > 1:  # whose fault it was shows one by one
                for job in batch:
                    self._answer([job])
                return
            if not isinstance(error, RoadkitError):
                log.exception("a batch failed")
                self._lost = models.device_lost(self.model.device)
            results = [error]
        self._steps, self._busy, self._running = self._steps + 1, self._busy + time.monotonic() - start, 0
        for job in batch:
            self._queue.done(job.tenant)
        self._worker.answer(partial(_deliver, batch, results))

    @torch.inference_mode()
    def _forward(self, batch: list[EncoderJob]) -> list[list[float]]:
        width = max(len(job.token_ids) for job in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.int64)
        mask = torch.zeros(len(batch), width, dtype=torch.int64)
        for row, job in enumerate(batch):
            ids[row, : len(job.token_ids)] = torch.tensor(job.token_ids)
            mask[row, : len(job.token_ids)] = 1
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        with self.bank.rows([job.adapter for job in batch]):
            if batch[0].kind == "classify":
                logits = self.model(input_ids=ids, attention_mask=mask).logits
                rows = list(logits)
            else:
                encoder = self.model.base_model
                hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
                weights = mask.unsqueeze(-1).to(hidden.dtype)
                mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
                rows = list(torch.nn.functional.normalize(mean, dim=-1))
        if not all(bool(row.isfinite().all()) for row in rows):
            raise RequestError("the model's output is not finite with this adapter")
        return [row.float().tolist() for row in rows]


def _longest(model: PreTrainedModel) -> int:
    """Tokens of a text at most: RoBERTa's and its kin's first position is the one after the padding's."""
    positions = getattr(model.config, "max_position_embeddings", 512)
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    padding = next((table.padding_idx for table in tables if isinstance(table, torch.nn.Embedding)), None)
    return int(positions) - (0 if padding is None else padding + 1)


def _deliver(batch: list[EncoderJob], results: list[list[float] | Exception]) -> None:
    for job, result in zip(batch, results, strict=True):
        job.done(result)
