"""Decode steps of one fixed shape, so that CUDA can capture them once as a graph and replay them.

    decode = StaticDecode(model, cache, current)
    logits = decode.logits(batch, bank)      # every sequence of the batch computes one token

A batch is padded to the next size in `SIZES` and its page tables to a power of two; padding rows are base requests that
write to a spare page. Everything that changes between steps lies in buffers that are filled in place. On the CPU the same
code runs without a graph: so it is tested where there is no GPU.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..bank import Bank
from ..bank.slots import IDENTITY
from ..cache import PAGE, PagedCache
from ..sequence import TokenSequence
from ..step import CurrentStep, Step
from .attention import MaskedDecode

log = logging.getLogger("roadkit.engine")

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)

Batch = list[tuple[TokenSequence, int]]


class _Inputs:
    """What a step of one shape reads, in buffers that stay where they are."""

    def __init__(self, size: int, width: int, cache: PagedCache):
        def buffer(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=cache.device)

        self.ids, self.rows, self.sites = buffer(1, size), buffer(1, size), buffer(1, size)
        self.last, self.places, self.tables = buffer(size), buffer(size), buffer(size, width)
        self.step = Step(cache, self.places, decode=MaskedDecode(self.tables, self.last))

    def fill(self, batch: Batch) -> None:
        """Write the batch into the buffers; one transfer each."""
        (size, width), spare = self.tables.shape, self.step.cache.spare_page
        ids, last, places = [0] * size, [0] * size, [spare * PAGE] * size
        rows, sites = [IDENTITY] * size, [IDENTITY] * size
        tables = [[spare] * width for _ in range(size)]
        for i, (sequence, _) in enumerate(batch):
            assert sequence.row is not None, f"sequence {sequence.id} runs without a row"
            position = sequence.num_computed
            ids[i], last[i], rows[i] = sequence.token_ids[position], position, sequence.row.slot
            sites[i] = sequence.site_slots(1)[0]
            places[i] = sequence.pages[position // PAGE] * PAGE + position % PAGE
            tables[i][: len(sequence.pages)] = sequence.pages
        self.ids.copy_(torch.tensor([ids]))
        self.last.copy_(torch.tensor(last))
        self.rows.copy_(torch.tensor([rows]))
        self.sites.copy_(torch.tensor([sites]))
        self.places.copy_(torch.tensor(places))
        self.tables.copy_(torch.tensor(tables))


class _Captured(NamedTuple):
    """One shape: its inputs, and the graph with the logits that it writes; None if the steps run uncaptured."""

    inputs: _Inputs
    graph: tuple[Any, Tensor] | None


class StaticDecode:
    """Captured decode steps by (batch size, table width). Captures again when a bank has moved its buffer."""

    def __init__(self, model: Any, cache: PagedCache, current: CurrentStep):
        self.model, self.cache, self.current = model, cache, current
        self._captured: dict[tuple[int, int, int], _Captured] = {}
        self._pool: Any = None

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The (batch size, table width) of what is captured."""
        return [(size, width) for size, width, _ in self._captured]

    def fits(self, batch: Batch) -> bool:
        """Does every sequence compute exactly one token, and is the batch within the captured sizes?"""
        plain = all(count == 1 and sequence.request.prompt_logprobs is None for sequence, count in batch)
        return plain and len(batch) <= SIZES[-1]

    def logits(self, batch: Batch, bank: Bank) -> Tensor:
        """[sequences, vocab] float32 of the batch's new tokens."""
        size = next(size for size in SIZES if size >= len(batch))
        longest = max(len(sequence.pages) for sequence, _ in batch)
        width = 1 << (longest - 1).bit_length()
        key = (size, width, bank.address)
        if key not in self._captured:
            self._captured = {old: value for old, value in self._captured.items() if old[2] == bank.address}
            self._pool = self._pool if self._captured else None  # it went with its last graph
            self._captured[key] = self._capture(size, width, batch, bank)
        inputs, captured = self._captured[key]
        inputs.fill(batch)
        if captured is None:
            logits = self._forward(inputs, bank)
        else:
            graph, logits = captured
            graph.replay()
        return logits[: len(batch)].float()

    def _forward(self, inputs: _Inputs, bank: Bank) -> Tensor:
        sites = inputs.sites if bank.has_sites else None
        with bank.using(inputs.rows, sites), self.current.computing(inputs.step):
            positions = inputs.last.unsqueeze(0)
            return self.model(input_ids=inputs.ids, position_ids=positions, use_cache=False).logits[0]

    def _capture(self, size: int, width: int, batch: Batch, bank: Bank) -> _Captured:
        inputs = _Inputs(size, width, self.cache)
        inputs.fill(batch)
        if self.cache.device.type != "cuda":
            return _Captured(inputs, None)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # a first run outside the graph compiles kernels and fills library caches
            self._forward(inputs, bank)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:  # thread_local: other threads may use the device meanwhile
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                logits = self._forward(inputs, bank)
        except RuntimeError as error:  # a model that reads back from the device while it runs
            log.warning("decode steps of %d requests run uncaptured: %s", size, error)
            return _Captured(inputs, None)
        self._pool = self._pool or graph.pool()
        return _Captured(inputs, (graph, logits))
