"""The client for asyncio, whose calls are those of `Client`."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from medray.client import (
    ChatReply,
    ChoiceAnswer,
    Client,
    DecisionReply,
    ExplainReply,
    LabelAnswer,
    MentionsAnswer,
    Messages,
    Questions,
    Reply,
)
from medray.errors import ConfigError, MedrayError, ServingError

Result = TypeVar("Result")


class AsyncClient:
    """The calls of `Client` for asyncio. `connections` requests run at a time, each in a thread.

    `async with AsyncClient() as client: await client.classify(["…"])`"""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        token: str | None = None,
        timeout_s: float | None = 30.0,
        connections: int = 64,
    ) -> None:
        if not isinstance(connections, int) or connections < 1:
            raise ConfigError(f"AsyncClient: connections {connections!r:.60}: give one or more")
        self.client = Client(url, token, timeout_s)
        self._threads = ThreadPoolExecutor(connections, "medray client")

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads. Requests that are under way finish."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def classify(
        self, texts: Sequence[str], *, model: str | None = None, citations: bool = False
    ) -> Reply[LabelAnswer]:
        return await self._wait(
            lambda: self.client.classify(texts, model=model, citations=citations)
        )

    async def choose(
        self, texts: Sequence[str], *, model: str | None = None, citations: bool = False
    ) -> Reply[ChoiceAnswer]:
        return await self._wait(lambda: self.client.choose(texts, model=model, citations=citations))

    async def extract(
        self, texts: Sequence[str], *, model: str | None = None
    ) -> Reply[MentionsAnswer]:
        return await self._wait(lambda: self.client.extract(texts, model=model))

    async def explain(
        self, text: str, *, label: str | None = None, model: str | None = None
    ) -> ExplainReply:
        return await self._wait(lambda: self.client.explain(text, label=label, model=model))

    async def decide(
        self,
        text: str,
        questions: Questions = (),
        *,
        model: str | None = None,
        citations: bool = False,
    ) -> DecisionReply:
        return await self._wait(
            lambda: self.client.decide(text, questions, model=model, citations=citations)
        )

    async def questions(self, model: str | None = None) -> list[dict[str, Any]]:
        return await self._wait(lambda: self.client.questions(model))

    async def chat(
        self, messages: Messages, *, model: str | None = None, **settings: Any
    ) -> ChatReply:
        return await self._wait(lambda: self.client.chat(messages, model=model, **settings))

    async def stream(
        self, messages: Messages, *, model: str | None = None, **settings: Any
    ) -> AsyncGenerator[str, None]:
        """Yield the answer's text in pieces. Closing the generator ends the generation."""
        pieces = self.client.stream(messages, model=model, **settings)
        try:
            while (piece := await self._wait(lambda: next(pieces, None))) is not None:
                yield piece
        finally:
            await asyncio.shield(self._wait(pieces.close))

    async def model(self, name: str) -> dict[str, Any]:
        return await self._wait(lambda: self.client.model(name))

    async def models(self) -> list[str]:
        return await self._wait(self.client.models)

    async def health(self) -> dict[str, Any]:
        return await self._wait(self.client.health)

    async def _wait(self, call: Callable[[], Result]) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except RuntimeError as err:
            if isinstance(err, MedrayError):
                raise
            raise ServingError(
                "AsyncClient: it is closed; make another one, or stay within `async with`"
            ) from None
