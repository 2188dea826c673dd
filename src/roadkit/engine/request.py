"""What a caller asks for and what comes back.

Request(prompt="Hello", adapter="formal*0.7", max_tokens=64, temperature=0.8, seed=1)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from ..errors import RequestError
from ..validation import Checked

Message = dict[str, Any]


class Request(Checked):
    """One generation request. Raises `RequestError` naming the field, the value and the mend.

    prompt               text, chat messages ([{"role": …, "content": …}], for the model's template), or token ids
    adapter              an expression over the engine's adapters; None is the base model
    max_tokens           how many tokens to generate at most
    temperature          0 is greedy
    top_k, top_p, min_p  keep the k most likely tokens; the smallest set of mass p; tokens above min_p × the likeliest
    repetition_penalty   divides (multiplies, if negative) the logits of tokens seen so far (transformers' convention)
    no_repeat_ngram_size no n tokens in a row occur twice
    seed                 the random numbers depend on the seed and the position alone; None draws a seed
    stop                 strings that end the text (left out of it); stop_token_ids likewise for tokens
    logprobs             how many alternatives to report beside each chosen token; None reports nothing
    prompt_logprobs      the same for the prompt's tokens
    min_tokens           tokens to generate before an end of sequence counts; ignore_eos lets none count
    json_schema          constrain the text to this JSON schema ({} is any JSON)
    """

    prompt: str | list[Message] | list[int]
    adapter: str | None = None
    max_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    no_repeat_ngram_size: int = Field(default=0, ge=0)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = Field(default=None, ge=0, le=100)
    prompt_logprobs: int | None = Field(default=None, ge=0, le=100)
    min_tokens: int = Field(default=0, ge=0)
    ignore_eos: bool = False
    json_schema: dict[str, Any] | None = None

    def __init__(self, **values: Any) -> None:
        if isinstance(values.get("stop"), str):
            values["stop"] = (values["stop"],)
        super().__init__(**values)
        if "" in self.stop:
            raise RequestError("stop: an empty string would stop every text at once; leave it out")
        if self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens {self.min_tokens} exceeds max_tokens {self.max_tokens}")


class TokenLogprob(NamedTuple):
    """A token's log-probability (natural, of the model's own distribution) and the likeliest alternatives."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


FinishReason = Literal["stop", "length", "cancelled", "error"]
Fault = Literal["request", "engine"]  # whose an error is: what was asked for, or what was to answer it


class Completion(BaseModel):
    """The answer to one request.

    error, fault    if finish_reason is 'error' or 'cancelled': why, and for an error whose it is; the text is what there was
    """

    model_config = ConfigDict(frozen=True)

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None
    fault: Fault | None = None


def failed(error: str, fault: Fault) -> Completion:
    """The answer to a request that never began."""
    return Completion(text="", token_ids=[], finish_reason="error", error=error, fault=fault)


class Chunk(NamedTuple):
    """A piece of a streamed answer; `completion` is set on the last one."""

    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprob]
    completion: Completion | None
