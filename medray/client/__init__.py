"""A client of the service: `Client("http://127.0.0.1:8000").classify(["…"])`. It needs the standard
library alone."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from numbers import Real
from typing import Any, TypeVar
from urllib.parse import quote

from medray.client.answers import (
    Answer,
    ChatReply,
    ChoiceAnswer,
    Citation,
    Citations,
    DecisionAnswer,
    DecisionReply,
    ExplainReply,
    Explanation,
    LabelAnswer,
    MentionAnswer,
    MentionsAnswer,
    Reply,
    WordShare,
)
from medray.errors import ConfigError, DataError, MedrayError, ServingError

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


Content = TypeVar("Content")
Questions = Sequence[Mapping[str, Any]]  # each as /v1/decisions takes it
Messages = Sequence[Mapping[str, str]]  # each with a role (system, user, assistant) and its content
_CHAT = "/v1/chat/completions"


class RefusedError(ServingError):
    """The service returned an error. The message begins with its HTTP status."""

    @property
    def status(self) -> int:
        return int(str(self).split(" ", 1)[0])


@dataclass(frozen=True)
class Client:
    """A client of the service at `url`. `model` is a release of the service, by default its only
    one for this kind of request.

    `Client("http://127.0.0.1:8000").classify(["The patient was well."]).predictions[0].label`"""

    url: str = "http://127.0.0.1:8000"
    token: str | None = field(default=None, repr=False)
    timeout_s: float | None = 30.0

    def __post_init__(self) -> None:
        if not (isinstance(self.url, str) and self.url.startswith(("http://", "https://"))):
            raise ConfigError(
                f"Client: {self.url!r:.80} is no address of a service; give one such as "
                "http://127.0.0.1:8000"
            )
        timeout_s = self.timeout_s
        if not (timeout_s is None or (isinstance(timeout_s, Real) and timeout_s > 0)):
            raise ConfigError(f"Client: timeout_s {timeout_s!r:.60}: give seconds above 0")

    def classify(
        self, texts: Sequence[str], *, model: str | None = None, citations: bool = False
    ) -> Reply[LabelAnswer]:
        """Return the label of each text, with the probabilities of all labels."""
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
        """Return the mentions in each text."""
        return self._predict("/v1/extract", texts, model, _mentions)

    def explain(
        self, text: str, *, label: str | None = None, model: str | None = None
    ) -> ExplainReply:
        """Return how much each word of a text speaks for a label, by default the predicted one.
        The service must have `explanations`."""

        def reply(body: dict[str, Any]) -> ExplainReply:
            explanation = Explanation(
                text=text,
                words=tuple(WordShare(**word) for word in body["words"]),
                **{name: body[name] for name in ("label", "total", "error", "method", "caveat")},
            )
            return ExplainReply(body["release"], body["version"], explanation, body["disclaimer"])

        fields = {"label": label, "model": model}
        return self._call("/v1/explain", {"text": text, **_present(fields)}, reply)

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
        items = _items(questions, "questions") or self.questions(model)
        fields = _present({"model": model, "citations": citations})
        return self._call(
            "/v1/decisions",
            {"input": text, "questions": items, **fields},
            lambda body: DecisionReply(
                body["release"],
                body["version"],
                tuple(map(_decision, body["answers"])),
                body["usage"]["input_tokens"],
                body["disclaimer"],
            ),
        )

    def questions(self, model: str | None = None) -> list[dict[str, Any]]:
        """Return the questions that a release was trained for, as `decide` takes them."""

        def of_model(body: dict[str, Any]) -> list[list[dict[str, Any]]]:
            return [
                release["request"]["questions"]
                for release in body["data"]
                if model in (None, release["id"], release["release"]) and release["request"]
            ]

        for questions in self._call("/v1/releases", None, of_model):
            return questions
        raise ServingError(
            f"{self.url}: {model or 'the service'} has no questions; name a release with labels"
        )

    def chat(self, messages: Messages, *, model: str | None = None, **settings: Any) -> ChatReply:
        """Return the answer to the last message; each has a role (system, user, assistant) and its
        content. The settings are max_tokens, temperature, top_p, seed, stop, citations."""

        def reply(body: dict[str, Any]) -> ChatReply:
            (choice,) = body["choices"]
            text, finish = choice["message"]["content"], choice["finish_reason"]
            return _chat_reply(body, text, finish, body["usage"])

        fields = {**settings, **_present({"model": model})}
        return self._call(_CHAT, {"messages": _items(messages, "messages"), **fields}, reply)

    def stream(
        self, messages: Messages, *, model: str | None = None, **settings: Any
    ) -> Generator[str, None, ChatReply]:
        """Yield the answer's text in pieces. The generator's return value is the whole reply.
        Closing the generator ends the generation."""
        request = {
            "messages": _items(messages, "messages"),
            **settings,
            **_present({"model": model}),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        pieces: list[str] = []
        last: dict[str, Any] = {}
        with self._medray_answer():
            for event in self._events(_CHAT, request):
                if "error" in event:
                    reason = event["error"]["message"]
                    raise ServingError(f"{self.url}: the answer broke off: {reason}")
                if not event["choices"]:
                    finish = last["choices"][0]["finish_reason"]
                    return _chat_reply(last, "".join(pieces), finish, event["usage"])
                last = event
                if piece := event["choices"][0]["delta"].get("content"):
                    pieces.append(piece)
                    yield piece
        raise ServingError(f"{self.url}: the answer broke off")

    def model(self, name: str) -> dict[str, Any]:
        """Return a release's description: its version, system prompt and disclaimer."""
        return self._call(f"/v1/models/{quote(str(name), errors='replace')}")

    def models(self) -> list[str]:
        """Return the names of the service's releases, as `model` takes them."""
        return self._call("/v1/models", None, lambda body: [row["id"] for row in body["data"]])

    def health(self) -> dict[str, Any]:
        """Return the state of the service; an error if it cannot answer requests."""
        return self._call("/healthz")

    def _predict(
        self,
        path: str,
        texts: Sequence[str],
        model: str | None,
        parse: Callable[[dict[str, Any]], Answer],
        **settings: Any,
    ) -> Reply[Answer]:
        return self._call(
            path,
            {"inputs": _items(texts, "texts"), **_present({"model": model, **settings})},
            lambda body: Reply(
                body["release"],
                body["version"],
                tuple(map(parse, body["predictions"])),
                body.get("disclaimer"),
            ),
        )

    def _call(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        parse: Callable[[dict[str, Any]], Content] = dict,  # type: ignore[assignment]
    ) -> Content:
        with self._open(path, body) as response, self._medray_answer():
            return parse(json.load(response))

    @contextmanager
    def _medray_answer(self) -> Iterator[None]:
        """Name an answer of another program as such."""
        try:
            yield
        except MedrayError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise ServingError(
                f"{self.url}: its answer is not one of a medray service; correct the address"
            ) from None

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
        try:
            data = None if body is None else json.dumps(body).encode()
        except (TypeError, ValueError) as err:
            raise DataError(f"{path}: the request is no JSON ({err}); give texts") from None
        address = self.url.rstrip("/") + path
        try:
            request = urllib.request.Request(address, data=data, headers=headers)
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                yield response
        except urllib.error.HTTPError as err:
            raise RefusedError(f"{err.code} {_message(err)}") from None
        except (OSError, ValueError, HTTPException) as err:
            raise ServingError(
                f"{self.url}: does not answer: {getattr(err, 'reason', err)}; start the service, "
                "or correct the address"
            ) from None


def _items(values: Any, what: str) -> list[Any]:
    """Return a request's texts, questions or messages as a list."""
    is_list = isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping)
    if not is_list or hasattr(values, "columns"):
        raise DataError(
            f"{what}: got a {type(values).__name__}; give a list, as in [{what.removesuffix('s')}]"
        )
    return list(values)


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


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
