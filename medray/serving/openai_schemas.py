"""Requests and responses of OpenAI's completion routes, with medray's fields added. Unknown fields
of a request are ignored, because new clients send new ones."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from medray.client.answers import Citations
from medray.serving.service import Conversation
from medray.text.identifiers import Kind
from medray.types import Message, Sampling, TokenLogprob

_MODEL = "the release that answers; optional if only one is served"
# Fields that medray does not support and that would change the answer, with their neutral values.
_UNSUPPORTED_FIELDS = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "audio": (),
    "modalities": (["text"],),
}
_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_PromptText = Annotated[str, StringConstraints(min_length=1)]
# With any constraint, pydantic refuses half of a surrogate pair.
_Content = Annotated[str, StringConstraints(min_length=0)]
_Stop = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
_GREEDY = 0.01  # lower temperatures overflow the logits, so they count as 0
_LEAST_TOP_P = 1e-6  # still above 0 as a 32-bit float


class _RequestModel(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class StreamOptions(_RequestModel):
    include_usage: bool = False


class ContentPart(_RequestModel):
    type: Literal["text"]
    text: _Content


class ChatMessage(_RequestModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: _Content | Annotated[tuple[ContentPart, ...], Field(fail_fast=True)]

    def message(self) -> Message:
        text = (
            self.content
            if isinstance(self.content, str)
            else "".join(part.text for part in self.content)
        )
        return Message(_ROLES[self.role], text)


class _CompletionOptions(_RequestModel):
    model: str | None = Field(None, description=_MODEL)
    max_tokens: int | None = Field(
        None, ge=1, description="tokens of the answer; by default the release's own number"
    )
    temperature: float | None = Field(
        None, ge=0, le=2, description="0, the default, is greedy; values below 0.01 count as 0"
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="values below 0.000001 count as 0.000001"
    )
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: _Stop | Annotated[tuple[_Stop, ...], Field(max_length=4, fail_fast=True)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    citations: bool = Field(
        False,
        description=(
            "name the sentences of the last message on which the answer rests; the model reads the "
            "message again without each of them"
        ),
    )

    @model_validator(mode="before")
    @classmethod
    def _check_fields(cls, raw: Any) -> Any:
        if isinstance(raw, dict):
            for name, neutral in _UNSUPPORTED_FIELDS.items():
                if raw.get(name) is not None and raw[name] not in neutral:
                    raise ValueError(
                        f"{name}: it is not supported; leave it out"
                        + (f" or give {neutral[0]}" if name == "n" else "")
                    )
        return raw

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @abstractmethod
    def turns(self) -> tuple[Message, ...]: ...

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None: ...

    def conversation(self) -> Conversation:
        stop = (
            () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else self.stop
        )
        sampling = Sampling(
            temperature=self.temperature
            if self.temperature and self.temperature >= _GREEDY
            else 0.0,
            top_p=1.0 if self.top_p is None else max(self.top_p, _LEAST_TOP_P),
            seed=self.seed,
            stop=stop,
            logprobs=self.num_logprobs,
        )
        return Conversation(
            self.turns(),
            sampling,
            self.max_tokens,
            whole=not self.stream,
            citations=self.citations,
        )


class ChatRequest(_CompletionOptions):
    messages: Annotated[tuple[ChatMessage, ...], Field(fail_fast=True)] = Field(
        min_length=1,
        description="the last one is the user's; a system message follows the release's own",
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, description="the newer name of max_tokens"
    )
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.messages[-1].role != "user":
            raise ValueError(
                f"the last message is from {self.messages[-1].role}; end with one from user"
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs has no effect without logprobs; set logprobs to true")
        return self

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def turns(self) -> tuple[Message, ...]:
        return tuple(message.message() for message in self.messages)

    def conversation(self) -> Conversation:
        plain = super().conversation()
        return replace(plain, max_tokens=self.max_completion_tokens or self.max_tokens)


class CompletionRequest(_CompletionOptions):
    prompt: _PromptText | tuple[_PromptText] = Field(
        description="one text, read as the only message of a conversation"
    )
    logprobs: int | None = Field(None, ge=0, le=5)

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    def turns(self) -> tuple[Message, ...]:
        return (Message("user", self.prompt if isinstance(self.prompt, str) else self.prompt[0]),)


class _ResponseModel(BaseModel):
    model_config = ConfigDict(frozen=True)


class Usage(_ResponseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(_ResponseModel):
    token: str
    logprob: float
    bytes: tuple[int, ...] | None


class ContentLogprob(TopLogprob):
    top_logprobs: tuple[TopLogprob, ...]


class ChatLogprobs(_ResponseModel):
    content: tuple[ContentLogprob, ...]
    refusal: None = None


class CompletionLogprobs(_ResponseModel):
    tokens: tuple[str, ...]
    token_logprobs: tuple[float, ...]
    top_logprobs: tuple[dict[str, float], ...]
    text_offset: tuple[int, ...]


class AssistantMessage(_ResponseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None  # OpenAI's field; `outcome` reports whether an answer refuses


class ChatChoice(_ResponseModel):
    index: Literal[0] = 0
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str


class ChatDelta(_ResponseModel):
    index: Literal[0] = 0
    delta: dict[str, str]
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class TextChoice(_ResponseModel):
    index: Literal[0] = 0
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class _Answer(_ResponseModel):
    """The fields of every response: OpenAI's first, then medray's."""

    id: str
    created: int
    model: str
    usage: Usage | None = None
    release: str
    version: int
    outcome: Literal["answered", "refused"] | None = Field(
        None, description="whether the answer refuses the request; set at its end"
    )
    confidence: float | None = Field(
        None,
        description=(
            "calibrated chance that the answer is right; null for a refusal, and for a release "
            "that was trained without `task.right_answer`"
        ),
    )
    abstained: bool | None = Field(
        None, description="true where the confidence is below the release's threshold"
    )
    disclaimer: str | None = None
    masked: dict[Kind, int] | None = Field(
        None,
        description=(
            "counts of identifiers that were masked in the messages, by kind, if masking is on"
        ),
    )
    citations: Citations | None = Field(
        None, description="if requested: places in the last message; set at the answer's end"
    )


class ChatCompletion(_Answer):
    object: Literal["chat.completion"] = "chat.completion"
    choices: tuple[ChatChoice, ...]


class ChatCompletionChunk(_Answer):
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: tuple[ChatDelta, ...]


class Completion(_Answer):
    """A completion, or a piece of one that is streamed."""

    object: Literal["text_completion"] = "text_completion"
    choices: tuple[TextChoice, ...]


def chat_logprobs(logprobs: Sequence[TokenLogprob]) -> ChatLogprobs | None:
    if not logprobs:
        return None
    return ChatLogprobs(
        content=tuple(
            ContentLogprob(
                token=one.text,
                logprob=one.logprob,
                bytes=_bytes(one.text),
                top_logprobs=tuple(
                    TopLogprob(token=text, logprob=value, bytes=_bytes(text))
                    for text, value in one.top
                ),
            )
            for one in logprobs
        )
    )


def completion_logprobs(logprobs: Sequence[TokenLogprob], offset: int) -> CompletionLogprobs | None:
    if not logprobs:
        return None
    lengths = [len(one.text) for one in logprobs]
    return CompletionLogprobs(
        tokens=tuple(one.text for one in logprobs),
        token_logprobs=tuple(one.logprob for one in logprobs),
        top_logprobs=tuple(dict(one.top) for one in logprobs),
        text_offset=tuple(offset + sum(lengths[:at]) for at in range(len(logprobs))),
    )


def _bytes(text: str) -> tuple[int, ...] | None:
    """Return a token's bytes, or None for part of a character."""
    return None if "\ufffd" in text else tuple(text.encode())
