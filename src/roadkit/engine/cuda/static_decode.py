"""Decode steps of one fixed shape, so that CUDA can capture them once as a graph and replay them.

    decode = StaticDecode(model, step, bank)
    logits = decode.run(batch)      # every sequence of the batch computes one token

A batch is padded to the next size in `SIZES` and its page tables to a power of two; padding rows are base requests that
write to a spare page. Everything that changes between steps lives in buffers that are filled in place. On the CPU the
same code runs without a graph, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attention import Static, Step
from ..bank import IDENTITY, Bank
from ..cache import PAGE
from ..scheduler import Sequence, site_slots

log = logging.getLogger("roadkit.engine")

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)


@dataclass
class _Captured:
    """One shape: its input buffers, the graph that reads them, and the logits it writes."""

    inputs: dict[str, Tensor]
    graph: Any
    logits: Tensor


class StaticDecode:
    """Captured decode steps by (batch size, table width). Captures again when the bank has moved its buffer."""

    def __init__(self, model: Any, step: Step, bank: Bank):
        self.model, self.step, self.bank = model, step, bank
        self._captured: dict[tuple[int, int, int], _Captured] = {}
        self._pool: Any = None

    def fits(self, batch: list[tuple[Sequence, int]]) -> bool:
        """Does every sequence compute exactly one token, and is the batch within the captured sizes?"""
        plain = all(count == 1 and sequence.request.prompt_logprobs is None for sequence, count in batch)
        return plain and len(batch) <= SIZES[-1]

    def run(self, batch: list[tuple[Sequence, int]]) -> Tensor:
        """Logits [sequences, vocab] float32 of the batch's new tokens."""
        size = next(size for size in SIZES if size >= len(batch))
        longest = max(len(sequence.pages) for sequence, _ in batch)
        width = 1 << (longest - 1).bit_length()
        key = (size, width, self.bank.address)
        if key not in self._captured:
            self._captured = {old: value for old, value in self._captured.items() if old[2] == self.bank.address}
            self._pool = self._pool if self._captured else None  # it went with its last graph
            self._captured[key] = self._capture(size, width, batch)
        captured = self._captured[key]
        self._fill(captured.inputs, batch)
        if captured.graph is not None:
            captured.graph.replay()
        else:
            captured.logits = self._forward(captured.inputs)
        return captured.logits[: len(batch)].float()

    def _fill(self, inputs: dict[str, Tensor], batch: list[tuple[Sequence, int]]) -> None:
        """Write the batch into the buffers; one transfer each."""
        size, width = inputs["tables"].shape
        spare = self.step.cache.spare_page
        ids, last, slots = [0] * size, [0] * size, [spare * PAGE] * size
        rows, sites = [IDENTITY] * size, [IDENTITY] * size
        tables = [[spare] * width for _ in range(size)]
        for i, (sequence, _) in enumerate(batch):
            assert sequence.row is not None
            position = sequence.num_computed
            ids[i], last[i], rows[i] = sequence.token_ids[position], position, sequence.row.slot
            sites[i] = site_slots(sequence, 1)[0]
            slots[i] = sequence.pages[position // PAGE] * PAGE + position % PAGE
            tables[i][: len(sequence.pages)] = sequence.pages
        values = {"ids": [ids], "last": last, "rows": [rows], "sites": [sites], "slots": slots, "tables": tables}
        for name, value in values.items():
            inputs[name].copy_(torch.tensor(value))

    def _forward(self, inputs: dict[str, Tensor]) -> Tensor:
        self.step.static = Static(inputs["tables"], inputs["last"])
        self.step.slots = inputs["slots"]
        self.bank.current = inputs["rows"]
        self.bank.current_sites = inputs["sites"] if self.bank.has_sites else None
        try:
            return self.model(
                input_ids=inputs["ids"], position_ids=inputs["last"].unsqueeze(0), use_cache=False
            ).logits[0]
        finally:
            self.step.static = self.bank.current = self.bank.current_sites = None

    def _capture(self, size: int, width: int, batch: list[tuple[Sequence, int]]) -> _Captured:
        device = self.step.cache.device
        shapes = {"ids": (1, size), "last": (size,), "rows": (1, size), "sites": (1, size), "slots": (size,)}
        shapes["tables"] = (size, width)
        inputs = {name: torch.zeros(shape, dtype=torch.int64, device=device) for name, shape in shapes.items()}
        self._fill(inputs, batch)
        if device.type != "cuda":
            return _Captured(inputs, None, torch.empty(0))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # a first run outside the graph compiles kernels and fills library caches
            self._forward(inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:  # thread_local: other threads may use the device meanwhile
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                logits = self._forward(inputs)
        except RuntimeError as error:  # a model that reads back from the device while it runs
            log.warning("decode steps of %d requests run uncaptured: %s", size, error)
            return _Captured(inputs, None, torch.empty(0))
        self._pool = self._pool or graph.pool()
        return _Captured(inputs, graph, logits)
