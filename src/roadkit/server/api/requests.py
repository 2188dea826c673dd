"""What OpenAI's clients send to the model, as strict pydantic models. Unknown fields and wrong types are refused.

    body = ChatRequest.model_validate({"model": "formal*0.7", "messages": [{"role": "user", "content": "Hi"}]})

Fields that change nothing here (`user`, `metadata`, …) are taken and ignored; fields that would have to change the
answer and do not (`frequency_penalty`, tools, …) are refused unless they hold the value that asks for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ...engine.prompts import Prompt


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half of a surrogate pair, which no encoding has") from None
    return text


Item = TypeVar("Item")
# The first mistake tells: a million of them would take seconds to list.
Many = Annotated[list[Item], Field(fail_fast=True)]
MAX_FIELDS = 64  # of one object; more than any has

Text = Annotated[str, AfterValidator(_encodable)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
Texts = Text | Many[TokenId] | Many[Text] | Many[Many[TokenId]]  # one or several, each as text or as tokens


class Body(BaseModel):
    """Strict, and closed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise ValueError(f"there are {len(data)} fields, more than {MAX_FIELDS} are never right")
        return data


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(Body):
    """OpenAI's wrapper around a schema. Always followed strictly."""

    name: Text = Field(default="", max_length=64)
    description: Text | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("response_format: json_schema goes with type 'json_schema', and only with it")
        return self

    @property
    def wanted(self) -> dict[str, Any] | None:
        """The schema to follow; None for free text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class Sampling(Body):
    """What both generating routes take. Each of their bodies says, whatever its own fields are called:

    prompts           each prompt by itself
    answer_tokens     tokens of an answer at most; None leaves it to the context
    wanted_logprobs   alternatives to report beside each token; None reports nothing
    """

    PROMPT_FIELD: ClassVar[str]
    REFUSED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "logit_bias": ({},),
    }

    model: Text
    n: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=0)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    seed: Seed | None = None
    stop: Text | Many[Text] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    # beyond OpenAI, with vLLM's names
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100, allow_inf_nan=False)
    no_repeat_ngram_size: int | None = Field(default=None, ge=0, le=1024)
    min_tokens: int | None = Field(default=None, ge=0)
    ignore_eos: bool | None = None
    stop_token_ids: Many[TokenId] | None = Field(default=None, max_length=64)
    # taken and ignored
    user: Text | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=MAX_FIELDS)
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # refused, see REFUSED
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(default=None, max_length=1024)

    @model_validator(mode="after")
    def _nothing_unsupported(self) -> Sampling:
        for name, harmless in self.REFUSED.items():
            value = getattr(self, name)
            if value is not None and value not in harmless:
                raise ValueError(f"{name} is not supported here; leave it out (repetition_penalty is)")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream=true only")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end an answer."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_echo(self) -> bool:
        """Whether the prompt comes back before the answer."""
        return False

    @property
    def most_tokens(self) -> int:
        """The largest number of tokens that any field asks for; 0 if none does."""
        return self.max_tokens or 0


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    PROMPT_FIELD: ClassVar[str] = "prompt"
    REFUSED: ClassVar[dict[str, tuple[Any, ...]]] = {**Sampling.REFUSED, "suffix": ("",)}

    prompt: Texts
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0)
    best_of: int | None = Field(default=None, ge=1)
    suffix: str | None = None

    @model_validator(mode="after")
    def _best_of_all(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of must equal n: no candidates are thrown away here")
        return self

    @property
    def prompts(self) -> Sequence[Prompt]:
        """Each prompt by itself."""
        return _each(self.prompt)

    @property
    def answer_tokens(self) -> int | None:
        """OpenAI's default is 16."""
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def wants_echo(self) -> bool:
        return bool(self.echo)


class Part(Body):
    """A piece of a message; only text can be read."""

    type: Literal["text"]
    text: Text


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Many[Part]
    name: Text | None = None
    refusal: None = None

    @property
    def plain(self) -> dict[str, str]:
        """As chat templates want it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    PROMPT_FIELD: ClassVar[str] = "messages"
    REFUSED: ClassVar[dict[str, tuple[Any, ...]]] = {
        **Sampling.REFUSED,
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": ("none",),
        "web_search_options": (),
        "verbosity": ("medium",),
    }

    messages: Many[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0)
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    modalities: Many[str] | None = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: str | None = None
    web_search_options: Any = None
    verbosity: str | None = None

    @model_validator(mode="after")
    def _logprobs_together(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs=true only")
        return self

    @property
    def prompts(self) -> Sequence[Prompt]:
        """The conversation, which is one prompt."""
        return [[message.plain for message in self.messages]]

    @property
    def answer_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens or None

    @property
    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def most_tokens(self) -> int:
        return max(self.max_tokens or 0, self.max_completion_tokens or 0)


GenerationRequest = ChatRequest | CompletionRequest


class EncodingRequest(Body):
    """POST /v1/classify, and what it has in common with /v1/embeddings."""

    model: Text
    input: Texts
    user: Text | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """Each text by itself."""
        return _each(self.input)


class EmbeddingRequest(EncodingRequest):
    """POST /v1/embeddings."""

    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)


def _each(texts: str | list[int] | list[str] | list[list[int]]) -> list[str | list[int]]:
    """One text or list of tokens by itself, or each of several."""
    if isinstance(texts, str) or (texts and isinstance(texts[0], int)):
        return [cast(str | list[int], texts)]
    return [*cast(list[str] | list[list[int]], texts)]
