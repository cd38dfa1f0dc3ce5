"""A small client of the HTTP service, with what Python has:
`Client("http://127.0.0.1:8000").classify(["…"])`."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Generic, TypeVar

from medray.answers import ChoiceAnswer, LabelAnswer, MentionAnswer, MentionsAnswer
from medray.errors import ServingError

Answer = TypeVar("Answer", LabelAnswer, ChoiceAnswer, MentionsAnswer)
Messages = Sequence[Mapping[str, str]]  # each with a role (system, user, assistant) and its content
_CHAT = "/v1/chat/completions"


class RefusedError(ServingError):
    """The service answered with an error; the message begins with its status."""

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
class Talked:
    """An answer in words; its text ends with the disclaimer unless the service or release says
    otherwise."""

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

    def classify(self, texts: Sequence[str], *, model: str | None = None) -> Reply[LabelAnswer]:
        return self._predict(
            "/v1/classify", texts, model, lambda answer: LabelAnswer(**_with_tuples(answer))
        )

    def choose(self, texts: Sequence[str], *, model: str | None = None) -> Reply[ChoiceAnswer]:
        """One of a closed set of labels per text, with all of them ranked."""
        return self._predict(
            "/v1/choose", texts, model, lambda answer: ChoiceAnswer(**_with_tuples(answer))
        )

    def extract(self, texts: Sequence[str], *, model: str | None = None) -> Reply[MentionsAnswer]:
        return self._predict("/v1/extract", texts, model, _mentions)

    def chat(self, messages: Messages, *, model: str | None = None, **settings: Any) -> Talked:
        """The answer to the last message. Settings are those of the route: max_tokens, temperature,
        top_p, seed, stop."""
        found = self._call(
            _CHAT, {"messages": list(messages), **settings, **({"model": model} if model else {})}
        )
        (choice,) = found["choices"]
        return _talked(found, choice["message"]["content"], choice["finish_reason"], found["usage"])

    def stream(
        self, messages: Messages, *, model: str | None = None, **settings: Any
    ) -> Generator[str, None, Talked]:
        """Its text in pieces, as they are made; the whole is the generator's result. Closing it
        ends the generation."""
        asked = {
            "messages": list(messages),
            **settings,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        pieces: list[str] = []
        last: dict[str, Any] = {}
        for event in self._events(_CHAT, asked | ({"model": model} if model else {})):
            if "error" in event:
                raise ServingError(f"{self.url}: the answer broke off: {event['error']['message']}")
            if not event["choices"]:
                return _talked(
                    last, "".join(pieces), last["choices"][0]["finish_reason"], event["usage"]
                )
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

    def _predict(
        self,
        path: str,
        texts: Sequence[str],
        model: str | None,
        parse: Callable[[dict[str, Any]], Answer],
    ) -> Reply[Answer]:
        body = self._call(path, {"inputs": list(texts), **({"model": model} if model else {})})
        return Reply(
            body["release"],
            body["version"],
            tuple(map(parse, body["predictions"])),
            body.get("disclaimer"),
        )

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
            raise ServingError(
                f"{self.url}: does not answer: {getattr(err, 'reason', err)}"
            ) from None


def _with_tuples(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in answer.items()
    }


def _mentions(answer: Mapping[str, Any]) -> MentionsAnswer:
    return MentionsAnswer(
        mentions=tuple(MentionAnswer(**mention) for mention in answer["mentions"])
    )


def _talked(found: Mapping[str, Any], text: str, finish: str, usage: Mapping[str, int]) -> Talked:
    said = {name: found[name] for name in ("release", "version", "outcome", "disclaimer")}
    return Talked(
        text=text,
        finish=finish,
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        **said,
    )


def _message(err: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(err)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(err.reason)
