"""`TokenSequence`: a request on its way, its tokens so far and what the engine holds for it.

sequence = TokenSequence(id=0, request=request, terms=(), token_ids=[5, 6], seed=1, detokenizer=detokenizer)
text, reason = sequence.append(token, None)
chunk = sequence.finish(reason, text=text, num_new=1)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..expression import Term
from .bank.slots import IDENTITY, Row
from .grammar import Grammar
from .logprobs import token_logprobs
from .request import Chunk, Completion, Fault, FinishReason, Request, TokenLogprob
from .text import Detokenizer


@dataclass(eq=False)
class TokenSequence:
    """The scheduler moves it from waiting to running, the runner reads it, the engine appends to it.

    terms         what `request.adapter` means
    token_ids     the prompt's tokens, then those generated
    seed          of this request's random numbers
    end_ids       tokens that end the answer
    tenant        computed prompt beginnings are shared within a tenant only
    emit          gets the chunks of the answer, the last of which brings the completion
    row           its row of the bank, held while it runs
    marks         positions of the prompt at which the row intervenes
    pages, keys   its pages of the cache, and the keys of those that are complete
    num_computed  tokens whose keys and values are in the pages
    num_cached    those of them that another request had left there
    skipped       steps in which others passed it, because no row was free for it
    """

    id: int
    request: Request
    terms: tuple[Term, ...]
    token_ids: list[int]
    seed: int = 0
    end_ids: frozenset[int] = frozenset()
    tenant: str = ""
    detokenizer: Detokenizer | None = None
    grammar: Grammar | None = None
    emit: Callable[[Chunk], None] = lambda chunk: None
    num_prompt: int = field(init=False)
    end_index: Tensor = field(init=False)  # `end_ids` to index logits with
    row: Row | None = None
    marks: frozenset[int] = frozenset()
    pages: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    num_computed: int = 0
    num_cached: int = 0
    skipped: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    finished: FinishReason | None = None

    def __post_init__(self) -> None:
        self.num_prompt = len(self.token_ids)
        # on the CPU: requests are made on any thread, while the engine's own uses the GPU
        self.end_index = torch.tensor(sorted(self.end_ids), dtype=torch.int64)

    @property
    def num_generated(self) -> int:
        """Tokens after the prompt."""
        return len(self.token_ids) - self.num_prompt

    @property
    def remaining(self) -> int:
        """Tokens not yet computed: the rest of the prompt, or the one just generated."""
        return len(self.token_ids) - self.num_computed

    @property
    def scores_prompt(self) -> bool:
        """Do its next tokens need logits each, because the prompt's log-probabilities were asked for?"""
        return self.request.prompt_logprobs is not None and self.num_computed < self.num_prompt

    def site_slots(self, count: int) -> list[int]:
        """The slot that rotates the hidden states of each of the next `count` tokens."""
        row, first = self.row, self.num_computed
        assert row is not None, f"sequence {self.id} runs without a row"
        if row.positions is None or row.positions.generated:
            return [row.site_slot] * count
        return [row.site_slot if position in self.marks else IDENTITY for position in range(first, first + count)]

    def append(self, token: int, logprob: TokenLogprob | None) -> tuple[str, FinishReason | None]:
        """Add a generated token. → the text that became certain; why the answer ends with it, None if it goes on"""
        assert self.detokenizer is not None, f"sequence {self.id} has no detokenizer"
        self.token_ids.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        if self.grammar is not None:
            self.grammar.accept(token)
        if token in self.end_ids and not self.request.ignore_eos:
            return "", "stop"
        text = self.detokenizer.push(token)
        if self.detokenizer.stopped or (self.grammar is not None and self.grammar.complete):
            return text, "stop"
        return text, "length" if self.num_generated >= self.request.max_tokens else None

    def record_prompt(self, logits: Tensor) -> None:
        """Keep the log-probabilities of the prompt tokens that follow those just computed: logits [count, vocab]."""
        first = self.num_computed - len(logits)
        del self.prompt_logprobs[first + 1 :]  # from before a preemption
        if not self.prompt_logprobs:
            self.prompt_logprobs.append(None)  # nothing predicts the first token
        following = self.token_ids[first + 1 : min(first + len(logits), self.num_prompt - 1) + 1]
        counts = [self.request.prompt_logprobs] * len(following)
        self.prompt_logprobs += token_logprobs(logits[: len(following)], following, counts)

    def finish(
        self,
        reason: FinishReason,
        *,
        text: str = "",
        num_new: int = 0,
        error: str | None = None,
        fault: Fault | None = None,
    ) -> Chunk:
        """End the answer. → its last chunk, with `text` and the `num_new` tokens that were not emitted yet"""
        assert self.detokenizer is not None, f"sequence {self.id} has no detokenizer"
        self.finished = reason
        text += self.detokenizer.finish()
        generated = self.token_ids[self.num_prompt :]
        completion = Completion(
            text=self.detokenizer.text,
            token_ids=generated,
            finish_reason=reason,
            logprobs=self.logprobs if self.request.logprobs is not None else None,
            prompt_logprobs=self.prompt_logprobs if self.request.prompt_logprobs is not None else None,
            prompt_tokens=self.num_prompt,
            cached_tokens=self.num_cached,
            error=error,
            fault=fault,
        )
        logprobs = self.logprobs[-num_new:] if num_new else []
        return Chunk(text, generated[len(generated) - num_new :], logprobs, completion)
