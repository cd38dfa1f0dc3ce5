"""A small client of the HTTP service, with what Python has: `Client("http://127.0.0.1:8000").classify(["…"])`."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medray.errors import ServingError


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

    def models(self) -> list[str]:
        return [str(model["id"]) for model in self._call("/v1/models")["data"]]

    def health(self) -> dict[str, Any]:
        return self._call("/healthz")

    def _call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        headers = {"content-type": "application/json"}
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                found: dict[str, Any] = json.load(response)
                return found
        except urllib.error.HTTPError as err:
            raise RefusedError(f"{err.code} {_message(err)}") from None
        except (OSError, ValueError) as err:
            raise ServingError(f"{self.url}: does not answer: {getattr(err, 'reason', err)}") from None


def _message(err: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(err)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(err.reason)
