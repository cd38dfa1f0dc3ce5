"""Bounds of the first process that reads a request: Serve's proxy, before Ray holds a byte of it.
Knows no Ray.

Serve calls `middlewares` in each proxy, because `environment` names it. It bounds heads by
uvicorn's protocol, which uvicorn (0.54) leaves without bounds, and bodies by a middleware; the
ingress bounds bodies a second time, by its own limits (`auth.py`)."""

import asyncio
import contextlib
import logging
import os
import re
import resource
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from starlette.middleware import Middleware
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from medray.serving.auth import (
    BODY_BYTES,
    App,
    Message,
    Receive,
    Refusal,
    Scope,
    Send,
    content,
    declared_bytes,
    refuse,
    replay,
    too_large,
)

log = logging.getLogger(__name__)
READING_BYTES = 64 << 20  # of all bodies that are not complete yet, at least
BODY_S = 30.0  # from the head of a request to the end of its body
NUM_HEADERS = 100
HEAD_BYTES = 1 << 16  # of the address and all headers, trailers included
HEAD_S = 10.0  # from the connection, or the first byte of a later request, to the end of the head
PIPELINED = 100  # requests that wait for the answer of one before
CONNECTIONS = (
    resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
)  # Ray's own sockets need some as well
_TOO_LARGE = Refusal(
    431,
    "head_too_large",
    f"more than {NUM_HEADERS} headers or {HEAD_BYTES} bytes of them; send fewer",
)
_TOO_MANY = Refusal(
    429,
    "overloaded",
    f"more than {PIPELINED} requests wait on one connection; read the answers first",
)
_INVALID = Refusal(400, "invalid_http", "this is not a valid HTTP request")
_LINGER_S, _LINGER_BYTES = (
    1.0,
    8 << 20,
)  # the rest of a refused body is thrown away, so that its client reads why
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
    """The variables that Serve's controller needs; its proxies and replicas inherit them."""
    return {_CALLBACK: f"{__name__}:middlewares", _BODY_BYTES: str(body_bytes)}


def check(body_bytes: int) -> None:
    """Warn where Serve was started without these bounds, or refuses what the application would
    read."""
    wanted = environment(body_bytes)
    if os.environ.get(_CALLBACK) == wanted[_CALLBACK] and _body_bytes() >= body_bytes:
        return
    log.warning(
        "Serve's proxy: does not have the bounds of this application; start Serve with %s in "
        "controller_options.runtime_env.env_vars",
        ", ".join(f'{name}: "{value}"' for name, value in wanted.items()),
    )


def _body_bytes() -> int:
    return int(os.environ.get(_BODY_BYTES, BODY_BYTES))


def middlewares() -> list[Middleware]:
    """Bound heads in this process, and return what bounds bodies. Serve calls it before it
    listens."""
    auto.AutoHTTPProtocol = BoundedProtocol  # type: ignore[misc]  # Serve has no setting for uvicorn's `http`
    body_bytes = _body_bytes()
    return [
        Middleware(Front, body_bytes=body_bytes, reading_bytes=max(READING_BYTES, 4 * body_bytes))
    ]


class Front:
    """Reads a body whole before the application hears of its request, within bounds of size and
    time."""

    def __init__(
        self,
        app: App,
        *,
        body_bytes: int,
        reading_bytes: int = READING_BYTES,
        body_s: float = BODY_S,
    ) -> None:
        self.app, self.body_bytes, self.reading_bytes, self.body_s = (
            app,
            body_bytes,
            reading_bytes,
            body_s,
        )
        self.bodies: dict[asyncio.Timeout, bytearray] = {}
        self.num_bytes = 0  # of all bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["headers"] = [
            (name, value) for name, value in scope["headers"] if _passes(name, value)
        ]
        declared = declared_bytes(scope["headers"])
        if declared != 0:
            is_too_large = declared is not None and declared > self.body_bytes
            body = too_large(self.body_bytes) if is_too_large else await self._read(receive)
            if isinstance(body, Refusal):
                await refuse(send, body, _rest(receive) if body.status == 413 else None)
                return
            if body is None:  # the client has left
                return
            receive = replay(body, receive)
        await self.app(scope, receive, _with_one_id(send))

    async def _read(self, receive: Receive) -> bytes | Refusal | None:
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
                return Refusal(
                    408,
                    "body_too_slow",
                    f"the body was not complete after {self.body_s:g} s; send it faster",
                )
            return Refusal(503, "overloaded", "too much is being sent at once; try again later", 1)
        finally:
            self._drop(timeout)

    def _make_room(self) -> None:
        """The largest bodies go first, so that a request of a usual size is read whatever others
        send."""
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
            ids = [
                header
                for header in message["headers"]
                if bytes(header[0]).lower() == b"x-request-id"
            ]
            for extra in ids[1:]:
                message["headers"].remove(extra)
        await send(message)

    return sent


class _OverBoundError(Exception):
    """Ends the parser from within its callbacks."""


class BoundedProtocol(HttpToolsProtocol):
    """Reads a head within bounds of size and time.

    An `Upgrade` is ignored, as RFC 9110 lets a server do. To a WebSocket it would leave all bounds
    (one whose handshake fails stays open for ever), and to HTTP/2, which Java's client offers,
    httptools loses the body."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.refusal = _INVALID
        self.num_headers = self.head_bytes = 0
        self.idle_bytes = (
            0  # since a request began, or since the last byte of a body: what the parser may keep
        )
        self.head_timer: asyncio.TimerHandle | None = None
        self.answering: RequestResponseCycle | None = None  # `cycle` is the last one that was read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()
        if len(self.connections) > CONNECTIONS:
            # Any of those that wait for their client: where one client opens thousands, it is most
            # likely one of them.
            others = (
                one
                for one in self.connections
                if one is not self and isinstance(one, BoundedProtocol)
            )
            waiting = (one for one in others if one.waits_for_client())
            next(
                waiting, self
            ).transport.abort()  # not close(): it waits for clients that never read

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_timer()
        super().connection_lost(exc)
        if self.answering is not None:
            self.answering.disconnected = True
            self.answering.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.answering = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        self.idle_bytes += len(data)
        if self.cycle is not None and self.cycle.response_complete:
            self._await_head()
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except (HttpParserError, HttpParserUpgrade):
            self.send_400_response("")
        if self.idle_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.refusal = _TOO_LARGE
            self.send_400_response("")

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            if not self._is_read_again():  # CONNECT
                raise
            lines = [
                b"%s %s HTTP/%s"
                % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
            ]
            lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
            self.parser = HttpRequestParser(self)
            self._feed(b"\r\n".join([*lines, b"", data[upgrade.args[0] :]]))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.num_headers = self.head_bytes = self.idle_bytes = 0
        self._await_head()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.num_headers += 1
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._end_timer()
        if self._is_read_again():
            return
        if len(self.pipeline) >= PIPELINED:
            self.refusal = _TOO_MANY
            raise _OverBoundError
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.idle_bytes = 0
        if not self._is_read_again():
            super().on_message_complete()

    def _is_read_again(self) -> bool:
        return self.parser.should_upgrade() and any(name == b"upgrade" for name, _ in self.headers)

    def send_400_response(self, msg: str) -> None:
        """Ours, in the form of every error; none in the middle of an answer to a request before."""
        if self.cycle is None or self.cycle.response_complete:
            body = content(self.refusal)
            head = (
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: "
                "close\r\n\r\n"
            )
            self.transport.write(STATUS_LINE[self.refusal.status] + head.encode() + body)
        self.transport.close()

    def _count(self, num_bytes: int) -> None:
        self.head_bytes += num_bytes
        if self.head_bytes > HEAD_BYTES or self.num_headers > NUM_HEADERS:
            self.refusal = _TOO_LARGE
            raise _OverBoundError

    def waits_for_client(self) -> bool:
        if (
            self.transport.get_write_buffer_size()
        ):  # an answer that is not read, also where it is closing
            return True
        is_busy = (
            self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        )
        return not is_busy and not self.transport.is_closing()

    def _await_head(self) -> None:
        if self.head_timer is None:
            self.head_timer = self.loop.call_later(HEAD_S, self._give_up)

    def _end_timer(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def _give_up(self) -> None:
        self.head_timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._await_head()  # an answer is under way, and reading may be paused until it ends
        else:
            self.transport.close()
