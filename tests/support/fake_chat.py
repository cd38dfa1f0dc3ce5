"""A chat service without a model, and an HTTP server of its routes."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from medray.runtime.cluster import free_port
from medray.serving.api import make_api
from medray.serving.refusals import Refusal
from medray.serving.schemas import Limits
from medray.serving.service import Conversation, Description, Event, Events, Start, TextPiece

WARNING = "Not a doctor."
ANSWER = (
    TextPiece("Asthma ", 2),
    TextPiece("is common.", 2),
    TextPiece("", 1, finish="stop", outcome="answered"),
)


class Service:
    """Sends the pieces that it is given, and records the requests."""

    references = ("adviser@best", "cancer@1")

    def __init__(self, *pieces: TextPiece | Refusal | Exception) -> None:
        self.pieces: Sequence[TextPiece | Refusal | Exception] = pieces or ANSWER
        self.requests: list[tuple[str, Conversation]] = []
        self.events: list[Event] = []
        self.num_closed = 0
        self.refusal: Refusal | None = None

    async def talk(self, reference: str, conversation: Conversation) -> Events:
        self.requests.append((reference, conversation))
        try:
            if self.refusal:
                yield self.refusal
                return
            yield Start("adviser", 3, 12, WARNING)
            for piece in self.pieces:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.num_closed += 1

    async def describe(self, reference: str) -> Description | Refusal:
        return Description("adviser", 3, "Be careful.", WARNING)

    async def answer(self, reference: str, request: Any) -> Any:
        return Refusal(
            400, "wrong_route", "model: adviser answers at /v1/chat/completions", param="model"
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
