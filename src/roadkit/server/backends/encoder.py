"""`EncoderBackend`: any Hugging Face encoder behind the server's seam. Each text of a batch may have its own adapter.

    backend = EncoderBackend(models.load_encoder("minilm"), models.load_tokenizer("minilm"))
    backend.submit(EncodingJob(tenant="acme", token_ids=[5, 6], adapter=None, task="embed", deliver=print))

Embeddings are the mean of the last hidden states over the text's tokens, of length 1. A model with a classification
head, its own or one that an adapter brings, gives logits instead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from ... import models
from ...engine.bank import Bank
from ...engine.prompts import PromptEncoder
from ...errors import AdapterError, ContextTooLong, RequestError, RoadkitError
from ...kinds import AnyAdapter
from .base import Ability, EncodingJob, Stats, Vector
from .fit import check_fit, of_layers
from .queue import FairQueue
from .worker import Worker

log = logging.getLogger("roadkit.server")

MAX_HEAD_BYTES = 64 << 20  # of the whole modules that one adapter brings


class EncoderBackend:
    """An `EncodingBackend` on a model, which it owns.

    max_queue   texts that may wait, half of them one tenant's
    own_head    whether the model's head is its own; else only adapters that bring one classify
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        max_batch: int = 32,
        max_queue: int = 2048,
        own_head: bool = True,
    ):
        self.model, self.max_batch = model.eval(), max_batch
        self.own_head = own_head
        labels = model.config.id2label or {}
        self.labels: Mapping[int, str] = {int(number): label for number, label in labels.items()}
        self.vector_size: int = model.config.hidden_size
        has_head = type(model).__name__.endswith("ForSequenceClassification")
        self.abilities: frozenset[Ability] = frozenset(("embed", "classify") if has_head else ("embed",))
        self.max_context = _longest(model)
        self.bank = Bank(model, slots=max(2 * max_batch, 16))
        half = max(1, max_queue // 2)
        self._queue: FairQueue[EncodingJob] = FairQueue(max_waiting=max_queue, max_waiting_per_tenant=half)
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

    def encode(self, text: str | list[int]) -> list[int]:
        token_ids = self.prompts.encode(text)
        if len(token_ids) > self.max_context:
            raise ContextTooLong(f"a text has {len(token_ids)} tokens, 1 to {self.max_context} fit the context")
        return token_ids

    def submit(self, job: EncodingJob) -> None:
        self._queue.put(job.tenant, job)
        self._worker.tell(None)

    def cancel(self, job: EncodingJob) -> None:
        """A job that waits ends with an error; one that runs is done within a batch."""
        job.cancelled = True
        if self._queue.remove(job.tenant, job):
            job.deliver(RequestError("the request was cancelled"))

    def check(self, adapter: AnyAdapter) -> None:
        heads = of_layers(adapter).heads
        size = sum(tensor.nbytes for saved in heads.values() for tensor in saved.values())
        if size > MAX_HEAD_BYTES:
            raise AdapterError(f"the adapter brings {size} bytes of whole modules, at most {MAX_HEAD_BYTES} are taken")
        if heads and "classify" not in self.abilities:
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
            batch: list[EncodingJob] = []
            while len(batch) < self.max_batch and (job := self._queue.pop()) is not None:
                if batch and job.task != batch[0].task:
                    self._answer([job])
                else:
                    batch.append(job)
            if batch:
                self._answer(batch)
        while (job := self._queue.pop()) is not None:
            job.cancelled = True
            self._worker.answer(partial(job.deliver, RequestError("the server stops")))

    def _answer(self, batch: list[EncodingJob]) -> None:
        self._worker.listen()  # adapters were told before their jobs were queued, but maybe after the last look
        start, self._running = time.monotonic(), len(batch)
        try:
            results: list[Vector | Exception] = list(self._forward(batch))
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
    def _forward(self, batch: list[EncodingJob]) -> list[Vector]:
        width = max(len(job.token_ids) for job in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.int64)
        mask = torch.zeros(len(batch), width, dtype=torch.int64)
        for row, job in enumerate(batch):
            ids[row, : len(job.token_ids)] = torch.tensor(job.token_ids)
            mask[row, : len(job.token_ids)] = 1
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        with self.bank.rows([job.adapter for job in batch]):
            if batch[0].task == "classify":
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


def _deliver(batch: list[EncodingJob], results: list[Vector | Exception]) -> None:
    for job, result in zip(batch, results, strict=True):
        try:
            job.deliver(result)
        except Exception:  # one request's trouble is not the others'
            log.exception("a result could not be delivered")
