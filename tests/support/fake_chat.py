"""A service that talks without a model, and the routes over it behind a port."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from medray.runtime.cluster import free_port
from medray.serving.api import make_api
from medray.serving.auth import Refusal
from medray.serving.schemas import Limits
from medray.serving.service import Conversation, Description, Event, Events, Start, TextPiece

WARNING = "Not a doctor."
ANSWER = (
    TextPiece("Asthma ", 2),
    TextPiece("is common.", 2),
    TextPiece("", 1, finish="stop", outcome="answered"),
)


class Service:
    """Says what it was given to say, and remembers what it was asked."""

    references = ("adviser@best", "cancer@1")

    def __init__(self, *said: TextPiece | Refusal | Exception) -> None:
        self.said: Sequence[TextPiece | Refusal | Exception] = said or ANSWER
        self.asked: list[tuple[str, Conversation]] = []
        self.events: list[Event] = []
        self.num_closed = 0
        self.refused: Refusal | None = None

    async def talk(self, reference: str, asked: Conversation) -> Events:
        self.asked.append((reference, asked))
        try:
            if self.refused:
                yield self.refused
                return
            yield Start("adviser", 3, 12, WARNING)
            for said in self.said:
                if isinstance(said, Exception):
                    raise said
                yield said
        finally:
            self.num_closed += 1

    async def describe(self, reference: str) -> Description | Refusal:
        return Description("adviser", 3, "Be careful.", WARNING)

    async def answer(self, reference: str, request: Any) -> Any:
        return Refusal(
            400, "wrong_route", "adviser is asked at /v1/chat/completions", param="model"
        )

    async def health(self) -> Any:
        return {"status": "ok"}

    def record(self, event: Event) -> None:
        self.events.append(event)


@contextmanager
def listening(service: Service, digests: frozenset[str] | None = None) -> Iterator[str]:
    import uvicorn

    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(make_api(service, Limits(), digests), port=port, log_level="error")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
