"""A client of the service: `Client("http://127.0.0.1:8000").classify(["…"])`. It needs the standard
library alone."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, Generic, TypeVar

from medray.client.answers import (
    ChoiceAnswer,
    Citation,
    Citations,
    Explanation,
    LabelAnswer,
    MentionAnswer,
    MentionsAnswer,
    WordShare,
)
from medray.errors import ServingError

__all__ = [
    "ChatReply",
    "ChoiceAnswer",
    "Citation",
    "Citations",
    "Client",
    "DecisionAnswer",
    "DecisionReply",
    "ExplainReply",
    "Explanation",
    "LabelAnswer",
    "MentionAnswer",
    "MentionsAnswer",
    "RefusedError",
    "Reply",
    "WordShare",
]


@dataclass(frozen=True)
class DecisionAnswer:
    """The answer to a typed question. Its type is predicate, choice, score, or refusal where the
    release abstains; the other fields are those of its type."""

    type: str
    name: str | None
    answer_confidence: float  # the calibrated chance that the release's own answer is right
    threshold: float | None = None  # of answer_confidence
    probability: float | None = None  # that a predicate is true
    decision: bool | None = None  # whether the release takes a predicate for true
    choice: str | bool | None = None
    score: float | None = None  # the expected level
    confidence: float | None = None  # how concentrated the probabilities are
    probabilities: Mapping[str | bool, float] = field(default_factory=dict)
    citations: Citations | None = None  # if requested, and not abstained

    @property
    def abstained(self) -> bool:
        return self.type == "refusal"


Answer = TypeVar("Answer", LabelAnswer, ChoiceAnswer, MentionsAnswer)
Questions = Sequence[Mapping[str, Any]]  # each as /v1/decisions takes it
Messages = Sequence[Mapping[str, str]]  # each with a role (system, user, assistant) and its content
_CHAT = "/v1/chat/completions"


class RefusedError(ServingError):
    """The service returned an error. The message begins with its HTTP status."""

    @property
    def status(self) -> int:
        return int(str(self).split(" ", 1)[0])


@dataclass(frozen=True)
class Reply(Generic[Answer]):
    release: str
    version: int
    predictions: tuple[Answer, ...]  # one per text, in order
    disclaimer: str | None = None


@dataclass(frozen=True)
class DecisionReply:
    release: str
    version: int
    answers: tuple[DecisionAnswer, ...]  # one per question, in order
    input_tokens: int
    disclaimer: str


@dataclass(frozen=True)
class ExplainReply:
    release: str
    version: int
    explanation: Explanation
    disclaimer: str


@dataclass(frozen=True)
class ChatReply:
    """A generated answer. Its text ends with the disclaimer, unless the service or the release
    turns that off."""

    release: str
    version: int
    text: str
    outcome: str
    disclaimer: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    citations: Citations | None = None  # if requested
    confidence: float | None = None  # the calibrated chance that the answer is right
    abstained: bool = False


@dataclass(frozen=True)
class Client:
    url: str = "http://127.0.0.1:8000"
    token: str | None = None
    timeout_s: float = 30.0

    def classify(
        self, texts: Sequence[str], *, model: str | None = None, citations: bool = False
    ) -> Reply[LabelAnswer]:
        return self._predict(
            "/v1/classify",
            texts,
            model,
            lambda answer: LabelAnswer(**_fields(answer)),
            citations=citations,
        )

    def choose(
        self, texts: Sequence[str], *, model: str | None = None, citations: bool = False
    ) -> Reply[ChoiceAnswer]:
        """Return one of a closed set of labels per text, and the ranking of all of them."""
        return self._predict(
            "/v1/choose",
            texts,
            model,
            lambda answer: ChoiceAnswer(**_fields(answer)),
            citations=citations,
        )

    def extract(self, texts: Sequence[str], *, model: str | None = None) -> Reply[MentionsAnswer]:
        return self._predict("/v1/extract", texts, model, _mentions)

    def explain(
        self, text: str, *, label: str | None = None, model: str | None = None
    ) -> ExplainReply:
        """Return how much each word of a text speaks for a label, by default the predicted one.
        The service must have `explanations`."""
        fields = {"text": text, "label": label, "model": model}
        body = self._call("/v1/explain", {name: value for name, value in fields.items() if value})
        explanation = Explanation(
            text=text,
            words=tuple(WordShare(**word) for word in body["words"]),
            **{name: body[name] for name in ("label", "total", "error", "method", "caveat")},
        )
        return ExplainReply(body["release"], body["version"], explanation, body["disclaimer"])

    def decide(
        self,
        text: str,
        questions: Questions = (),
        *,
        model: str | None = None,
        citations: bool = False,
    ) -> DecisionReply:
        """Answer typed questions about a text. They have the form of `/v1/decisions`; by default
        they are those that the release was trained for."""
        body = self._call(
            "/v1/decisions",
            {
                "input": text,
                "questions": list(questions or self.questions(model)),
                **({"model": model} if model else {}),
                **({"citations": True} if citations else {}),
            },
        )
        return DecisionReply(
            body["release"],
            body["version"],
            tuple(map(_decision, body["answers"])),
            body["usage"]["input_tokens"],
            body["disclaimer"],
        )

    def questions(self, model: str | None = None) -> list[dict[str, Any]]:
        """Return the questions that a release was trained for, as `decide` takes them."""
        for release in self._call("/v1/releases")["data"]:
            if model in (None, release["id"], release["release"]) and release["request"]:
                questions: list[dict[str, Any]] = release["request"]["questions"]
                return questions
        raise ServingError(
            f"{self.url}: {model or 'the service'} has no questions; name a release with labels"
        )

    def chat(self, messages: Messages, *, model: str | None = None, **settings: Any) -> ChatReply:
        """Return the answer to the last message. The settings are the route's: max_tokens,
        temperature, top_p, seed, stop, citations."""
        body = self._call(
            _CHAT, {"messages": list(messages), **settings, **({"model": model} if model else {})}
        )
        (choice,) = body["choices"]
        return _chat_reply(
            body, choice["message"]["content"], choice["finish_reason"], body["usage"]
        )

    def stream(
        self, messages: Messages, *, model: str | None = None, **settings: Any
    ) -> Generator[str, None, ChatReply]:
        """Yield the answer's text in pieces. The generator's return value is the whole reply.
        Closing the generator ends the generation."""
        request = {
            "messages": list(messages),
            **settings,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        pieces: list[str] = []
        last: dict[str, Any] = {}
        for event in self._events(_CHAT, request | ({"model": model} if model else {})):
            if "error" in event:
                raise ServingError(f"{self.url}: the answer broke off: {event['error']['message']}")
            if not event["choices"]:
                return _chat_reply(
                    last, "".join(pieces), last["choices"][0]["finish_reason"], event["usage"]
                )
            last = event
            if piece := event["choices"][0]["delta"].get("content"):
                pieces.append(piece)
                yield piece
        raise ServingError(f"{self.url}: the answer broke off")

    def model(self, name: str) -> dict[str, Any]:
        """Return a release's description: its version, system prompt and disclaimer."""
        return self._call(f"/v1/models/{name}")

    def models(self) -> list[str]:
        return [str(model["id"]) for model in self._call("/v1/models")["data"]]

    def health(self) -> dict[str, Any]:
        return self._call("/healthz")

    def _predict(
        self,
        path: str,
        texts: Sequence[str],
        model: str | None,
        parse: Callable[[dict[str, Any]], Answer],
        **settings: Any,
    ) -> Reply[Answer]:
        fields = {"inputs": list(texts), "model": model, **settings}
        body = self._call(path, {name: value for name, value in fields.items() if value})
        return Reply(
            body["release"],
            body["version"],
            tuple(map(parse, body["predictions"])),
            body.get("disclaimer"),
        )

    def _call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        with self._open(path, body) as response:
            content: dict[str, Any] = json.load(response)
            return content

    def _events(self, path: str, body: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        with self._open(path, body) as response:
            for line in response:
                data = line.decode().strip().removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                if data:
                    yield json.loads(data)

    @contextmanager
    def _open(self, path: str, body: Mapping[str, Any] | None) -> Iterator[Any]:
        headers = {"content-type": "application/json"}
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                yield response
        except urllib.error.HTTPError as err:
            raise RefusedError(f"{err.code} {_message(err)}") from None
        except (OSError, ValueError, HTTPException) as err:
            raise ServingError(
                f"{self.url}: does not answer: {getattr(err, 'reason', err)}"
            ) from None


def _fields(answer: Mapping[str, Any]) -> dict[str, Any]:
    fields = {
        name: tuple(value) if isinstance(value, list) else value for name, value in answer.items()
    }
    return {**fields, "citations": _citations(answer)}


def _citations(body: Mapping[str, Any]) -> Citations | None:
    if (fields := body.get("citations")) is None:
        return None
    sentences = tuple(Citation(**sentence) for sentence in fields["sentences"])
    return Citations(**{**fields, "sentences": sentences})


def _mentions(answer: Mapping[str, Any]) -> MentionsAnswer:
    return MentionsAnswer(
        mentions=tuple(MentionAnswer(**mention) for mention in answer["mentions"])
    )


def _decision(answer: Mapping[str, Any]) -> DecisionAnswer:
    probabilities = {
        one["label"] if "label" in one else one["value"]: one["probability"]
        for one in answer.get("probabilities", ())
    }
    changes = {"probabilities": probabilities, "citations": _citations(answer)}
    return DecisionAnswer(**{**answer, **changes})


def _chat_reply(
    body: Mapping[str, Any], text: str, finish: str, usage: Mapping[str, int]
) -> ChatReply:
    fields = {name: body[name] for name in ("release", "version", "outcome", "disclaimer")}
    return ChatReply(
        text=text,
        finish=finish,
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        citations=_citations(body),
        confidence=body.get("confidence"),
        abstained=bool(body.get("abstained")),
        **fields,
    )


def _message(err: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(err)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(err.reason)
