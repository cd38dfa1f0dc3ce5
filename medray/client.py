"""A small client of the HTTP service, with what Python has: `Client("http://127.0.0.1:8000").classify(["…"])`."""

import json
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from medray.errors import ServingError

Messages = Sequence[Mapping[str, str]]  # each with a role (system, user, assistant) and its content
_CHAT = "/v1/chat/completions"


class RefusedError(ServingError):
    """The service answered with an error; the message begins with its status."""

    @property
    def status(self) -> int:
        return int(str(self).split(" ", 1)[0])


@dataclass(frozen=True)
class Answer:
    label: str | None
    labels: tuple[str, ...]
    confidence: float
    abstained: bool
    probabilities: Mapping[str, float]


@dataclass(frozen=True)
class Classified:
    release: str
    version: int
    predictions: tuple[Answer, ...]


@dataclass(frozen=True)
class Choice:
    label: str | None
    labels: tuple[str, ...]
    confidence: float
    abstained: bool
    ranked: tuple[str, ...]
    probabilities: Mapping[str, float]


@dataclass(frozen=True)
class Chosen:
    release: str
    version: int
    disclaimer: str
    predictions: tuple[Choice, ...]


@dataclass(frozen=True)
class Found:
    """`text[start:end]` of the text that was sent."""

    start: int
    end: int
    text: str
    kind: str
    confidence: float | None


@dataclass(frozen=True)
class Extracted:
    release: str
    version: int
    disclaimer: str
    mentions: tuple[tuple[Found, ...], ...]  # of each text


@dataclass(frozen=True)
class Talked:
    """An answer in words; its text ends with the disclaimer unless the service or release says otherwise."""

    release: str
    version: int
    text: str
    outcome: str
    disclaimer: str
    finish: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Client:
    url: str = "http://127.0.0.1:8000"
    token: str | None = None
    timeout_s: float = 30.0

    def classify(self, texts: Sequence[str], *, model: str | None = None) -> Classified:
        """One answer a text, in order."""
        found = self._call("/v1/classify", {"inputs": list(texts), **({"model": model} if model else {})})
        answers = (Answer(**{**answer, "labels": tuple(answer["labels"])}) for answer in found["predictions"])
        return Classified(found["release"], found["version"], tuple(answers))

    def choose(self, texts: Sequence[str], *, model: str | None = None) -> Chosen:
        """One of a closed set of labels a text, in order, with all of them ranked."""
        found = self._call("/v1/choose", {"inputs": list(texts), **({"model": model} if model else {})})
        answers = (
            Choice(**{**answer, "labels": tuple(answer["labels"]), "ranked": tuple(answer["ranked"])}) for answer in found["predictions"]
        )
        return Chosen(found["release"], found["version"], found["disclaimer"], tuple(answers))

    def extract(self, texts: Sequence[str], *, model: str | None = None) -> Extracted:
        """The mentions of each text, in order."""
        found = self._call("/v1/extract", {"inputs": list(texts), **({"model": model} if model else {})})
        mentions = (tuple(Found(**mention) for mention in answer["mentions"]) for answer in found["predictions"])
        return Extracted(found["release"], found["version"], found["disclaimer"], tuple(mentions))

    def chat(self, messages: Messages, *, model: str | None = None, **settings: Any) -> Talked:
        """The answer to the last message. Settings are those of the route: max_tokens, temperature, top_p, seed, stop."""
        found = self._call(_CHAT, {"messages": list(messages), **settings, **({"model": model} if model else {})})
        (choice,) = found["choices"]
        return _talked(found, choice["message"]["content"], choice["finish_reason"], found["usage"])

    def stream(self, messages: Messages, *, model: str | None = None, **settings: Any) -> Generator[str, None, Talked]:
        """Its text in pieces, as they are made; the whole is the generator's result. Closing it ends the generation."""
        asked = {"messages": list(messages), **settings, "stream": True, "stream_options": {"include_usage": True}}
        pieces: list[str] = []
        last: dict[str, Any] = {}
        for event in self._events(_CHAT, asked | ({"model": model} if model else {})):
            if "error" in event:
                raise ServingError(f"{self.url}: the answer broke off: {event['error']['message']}")
            if not event["choices"]:
                return _talked(last, "".join(pieces), last["choices"][0]["finish_reason"], event["usage"])
            last = event
            if piece := event["choices"][0]["delta"].get("content"):
                pieces.append(piece)
                yield piece
        raise ServingError(f"{self.url}: the answer broke off")

    def model(self, name: str) -> dict[str, Any]:
        """What one should know who asks a release: its version, system prompt and disclaimer."""
        return self._call(f"/v1/models/{name}")

    def models(self) -> list[str]:
        return [str(model["id"]) for model in self._call("/v1/models")["data"]]

    def health(self) -> dict[str, Any]:
        return self._call("/healthz")

    def _call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        with self._open(path, body) as response:
            found: dict[str, Any] = json.load(response)
            return found

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
            raise ServingError(f"{self.url}: does not answer: {getattr(err, 'reason', err)}") from None


def _talked(found: Mapping[str, Any], text: str, finish: str, usage: Mapping[str, int]) -> Talked:
    said = {name: found[name] for name in ("release", "version", "outcome", "disclaimer")}
    return Talked(text=text, finish=finish, prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"], **said)


def _message(err: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(err)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(err.reason)
