"""Bounds of the first process that reads a request: Serve's proxy, before Ray holds a byte of it. Knows no Ray.

Serve calls `middlewares` in each proxy, because `environment` names it. The ingress bounds bodies
a second time, by its own limits (`guard.py`).
"""

import asyncio
import contextlib
import logging
import os
import re
from typing import TYPE_CHECKING

from medray.serving.auth import App, Message, Receive, Refused, Scope, Send, declared_bytes, refuse, replay, too_large

if TYPE_CHECKING:
    from starlette.middleware import Middleware

log = logging.getLogger(__name__)
BODY_BYTES = 1 << 20  # of a request, where limits.body_bytes sets no other number
READING_BYTES = 64 << 20  # of all bodies that are not complete yet, at least
BODY_S = 30.0  # from the head of a request to the end of its body
_LINGER_S, _LINGER_BYTES = 1.0, 8 << 20  # the rest of a refused body is thrown away, so that its client reads why
_CALLBACK, _BODY_BYTES = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "MEDRAY_BODY_BYTES"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
# Serve obeys these headers of any client: they end its timeout, its watch for clients that leave,
# and its choice of a replica; one that is no UTF-8 is a 500. medray needs none of them.
_SERVES_OWN = {
    b"serve-multiplexed-model-id",
    b"x-session-id",
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
}


def environment(body_bytes: int) -> dict[str, str]:
    """What Serve's controller must have in its environment; its proxies and replicas inherit it."""
    return {_CALLBACK: f"{__name__}:middlewares", _BODY_BYTES: str(body_bytes)}


def check(body_bytes: int) -> None:
    """Warn where Serve was started without these bounds, or refuses what the application would read."""
    wanted = environment(body_bytes)
    if os.environ.get(_CALLBACK) == wanted[_CALLBACK] and _body_bytes() >= body_bytes:
        return
    log.warning(
        "Serve's proxy: does not have the bounds of this application; start Serve with %s in controller_options.runtime_env.env_vars",
        ", ".join(f'{name}: "{value}"' for name, value in wanted.items()),
    )


def _body_bytes() -> int:
    return int(os.environ.get(_BODY_BYTES, BODY_BYTES))


def middlewares() -> "list[Middleware]":
    """Bound heads in this process, and return what bounds bodies. Serve calls it before it listens."""
    from starlette.middleware import Middleware
    from uvicorn.protocols.http import auto

    from medray.serving.protocol import BoundedProtocol

    auto.AutoHTTPProtocol = BoundedProtocol  # type: ignore[misc]  # Serve has no setting for uvicorn's `http`
    body_bytes = _body_bytes()
    return [Middleware(Front, body_bytes=body_bytes, reading_bytes=max(READING_BYTES, 4 * body_bytes))]


class Front:
    """Reads a body whole before the application hears of its request, within bounds of size and time."""

    def __init__(self, app: App, *, body_bytes: int, reading_bytes: int = READING_BYTES, body_s: float = BODY_S) -> None:
        self.app, self.body_bytes, self.reading_bytes, self.body_s = app, body_bytes, reading_bytes, body_s
        self.bodies: dict[asyncio.Timeout, bytearray] = {}
        self.num_bytes = 0  # of all bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["headers"] = [(name, value) for name, value in scope["headers"] if _passes(name, value)]
        declared = declared_bytes(scope["headers"])
        if declared != 0:
            is_too_large = declared is not None and declared > self.body_bytes
            body = too_large(self.body_bytes) if is_too_large else await self._read(receive)
            if isinstance(body, Refused):
                await refuse(send, body, _rest(receive) if body.status == 413 else None)
                return
            if body is None:  # the client has left
                return
            receive = replay(body, receive)
        await self.app(scope, receive, _with_one_id(send))

    async def _read(self, receive: Receive) -> bytes | Refused | None:
        body, timeout = bytearray(), asyncio.timeout(self.body_s)
        try:
            async with timeout:
                self.bodies[timeout] = body
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    if timeout not in self.bodies:
                        raise TimeoutError
                    part = message.get("body", b"")
                    body += part
                    self.num_bytes += len(part)
                    if len(body) > self.body_bytes:
                        return too_large(self.body_bytes)
                    if not message.get("more_body", False):
                        return bytes(body)
                    self._make_room()
        except TimeoutError:
            if timeout in self.bodies:
                return Refused(408, "body_too_slow", f"the body was not complete after {self.body_s:g} s; send it faster")
            return Refused(503, "overloaded", "too much is being sent at once; try again later", 1)
        finally:
            self._drop(timeout)

    def _make_room(self) -> None:
        """The largest bodies go first, so that a request of a usual size is read whatever others send."""
        while self.num_bytes > self.reading_bytes:
            largest = max(self.bodies, key=lambda one: len(self.bodies[one]))
            self._drop(largest)
            if not largest.expired():
                largest.reschedule(asyncio.get_running_loop().time())

    def _drop(self, timeout: asyncio.Timeout) -> None:
        self.num_bytes -= len(self.bodies.pop(timeout, b""))


def _passes(name: bytes, value: bytes) -> bool:
    plain = name.lower().replace(b"_", b"-")
    if plain == b"x-request-id":
        return _REQUEST_ID.fullmatch(value) is not None  # it stands in Serve's log and answer
    return plain not in _SERVES_OWN


async def _rest(receive: Receive) -> None:
    """Throw away what the client still sends, for a moment."""
    num_bytes = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while num_bytes < _LINGER_BYTES:
                message = await receive()
                num_bytes += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def _with_one_id(send: Send) -> Send:
    """The ingress and Serve each name the request's id."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            ids = [header for header in message["headers"] if bytes(header[0]).lower() == b"x-request-id"]
            for extra in ids[1:]:
                message["headers"].remove(extra)
        await send(message)

    return sent
