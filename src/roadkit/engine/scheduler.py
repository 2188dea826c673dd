"""Which requests run in the next step, and on how many of their tokens.

    batch = scheduler.next_batch()         # [(sequence, number of tokens to compute)]
    scheduler.advance(batch)               # after the runner has computed them

Every running request that generates gets one token a step. Prompts are computed in chunks beside them, first come
first served, so that a long prompt does not stall the others. A request starts when there is room in the batch, pages
for its prompt and a bank row for its adapter; when pages run out, the youngest gives its own back and starts over
later.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable

from ..errors import BankFull, QueueFull, RoadkitError
from .bank.slots import Row
from .cache import PAGE, PagedCache, page_keys
from .sequence import TokenSequence


class Scheduler:
    """Waiting, running and finished requests.

    acquire, release   take and give back a bank row: `acquire(sequence)` may raise `BankFull`
    max_batch          requests that run at once
    max_waiting        requests that may wait; beyond, `submit` raises `QueueFull`
    chunk              prompt tokens in a step beside generating requests; alone, `burst` of them
    """

    max_skips = 64  # steps that others may pass a request which waits for a bank row

    def __init__(
        self,
        cache: PagedCache,
        *,
        acquire: Callable[[TokenSequence], Row],
        release: Callable[[Row], None],
        max_batch: int = 8,
        max_waiting: int = 4096,
        chunk: int = 128,
        burst: int = 512,
    ):
        self.cache, self.acquire, self.release = cache, acquire, release
        self.max_batch, self.max_waiting, self.chunk, self.burst = max_batch, max_waiting, chunk, burst
        self.waiting: deque[TokenSequence] = deque()
        self.running: list[TokenSequence] = []
        self.failed: list[tuple[TokenSequence, RoadkitError]] = []

    @property
    def full(self) -> bool:
        """Do as many requests wait as may?"""
        return len(self.waiting) >= self.max_waiting

    def submit(self, sequence: TokenSequence) -> None:
        """Queue a request. Raises `QueueFull`."""
        if self.full:
            raise QueueFull(
                f"{len(self.waiting)} requests are waiting, at most {self.max_waiting} may; try again later"
            )
        self.waiting.append(sequence)

    def next_batch(self) -> list[tuple[TokenSequence, int]]:
        """The sequences of the next step, with how many tokens of each to compute; [] if there is nothing to do."""
        self._admit()
        batch: list[tuple[TokenSequence, int]] = []
        for sequence in list(self.running):
            if sequence.remaining == 1 and sequence in self.running and self._ensure_pages(sequence, 1):
                batch.append((sequence, 1))
        batch = [item for item in batch if item[0] in self.running]
        budget = self.chunk if batch else self.burst
        for sequence in list(self.running):
            if sequence.remaining > 1 and budget > 0:
                count = min(sequence.remaining, budget)
                if self._ensure_pages(sequence, count, preempt=False):
                    batch.append((sequence, count))
                    budget -= count
        return batch

    def advance(self, batch: list[tuple[TokenSequence, int]]) -> None:
        """Count computed tokens, and offer completed pages to requests with the same beginning."""
        for sequence, count in batch:
            before, sequence.num_computed = sequence.num_computed // PAGE, sequence.num_computed + count
            after = sequence.num_computed // PAGE
            if after > before:
                if len(sequence.keys) < after:
                    assert sequence.row is not None
                    content = sequence.tenant + sequence.row.key
                    sequence.keys = page_keys(content, sequence.token_ids[: after * PAGE], sequence.marks)
                for index in range(before, after):
                    self.cache.remember(sequence.pages[index], sequence.keys[index])

    def finish(self, sequence: TokenSequence) -> None:
        """Give back everything a request holds, wherever it is."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._give_back(sequence)

    # ---- inside -------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        for sequence in list(itertools.islice(self.waiting, 4 * self.max_batch)):
            if len(self.running) >= self.max_batch:
                return
            try:
                row = sequence.row or self._acquire(sequence)  # a preempted request kept its own
            except BankFull:
                sequence.skipped += 1
                if sequence.skipped > self.max_skips:
                    return  # let the running ones finish before anyone passes again
                continue
            except RoadkitError as error:  # an adapter that cannot be read or composed: this request's trouble alone
                self.waiting.remove(sequence)
                self.failed.append((sequence, error))
                continue
            if not self._take_prefix(sequence, row):
                if sequence.row is None:
                    self.release(row)
                return
            self.waiting.remove(sequence)
            self.running.append(sequence)

    def _acquire(self, sequence: TokenSequence) -> Row:
        """Take a row, and mark the prompt's positions at which it intervenes.

        Raises what `acquire` does, and `RequestError` for positions outside the prompt.
        """
        row = self.acquire(sequence)
        if row.positions is not None and not row.positions.generated:
            try:
                sequence.marks = frozenset(row.positions.of_prompt(sequence.num_prompt))
            except RoadkitError:
                self.release(row)
                raise
        return row

    def _take_prefix(self, sequence: TokenSequence, row: Row) -> bool:
        """Pages for the whole prompt, as many as possible from requests with the same beginning."""
        sequence.keys = page_keys(sequence.tenant + row.key, sequence.token_ids, sequence.marks)
        shareable = 0 if sequence.request.prompt_logprobs is not None else (len(sequence.token_ids) - 1) // PAGE
        shared = self.cache.lookup(sequence.keys[:shareable])
        fresh = self.cache.allocate(-(-len(sequence.token_ids) // PAGE) - len(shared))
        if fresh is None:
            self.cache.release(shared)
            return False
        sequence.row, sequence.pages = row, shared + fresh
        sequence.num_computed = sequence.num_cached = len(shared) * PAGE
        return True

    def _ensure_pages(self, sequence: TokenSequence, count: int, *, preempt: bool = True) -> bool:
        needed = -(-(sequence.num_computed + count) // PAGE) - len(sequence.pages)
        while needed > 0:
            fresh = self.cache.allocate(needed)
            if fresh is not None:
                sequence.pages += fresh
                return True
            if not preempt:
                return False
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _preempt(self, sequence: TokenSequence) -> None:
        """Back to the head of the queue without pages, but with the bank row, and so the adapter's version, it has."""
        self.running.remove(sequence)
        self._free_pages(sequence)
        sequence.num_computed = 0
        self.waiting.appendleft(sequence)

    def _free_pages(self, sequence: TokenSequence) -> None:
        self.cache.release(sequence.pages)
        sequence.pages, sequence.keys = [], []

    def _give_back(self, sequence: TokenSequence) -> None:
        self._free_pages(sequence)
        if sequence.row is not None:
            self.release(sequence.row)
            sequence.row = None
