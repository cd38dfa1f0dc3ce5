"""Bounds for Serve's proxy, the first process that reads a request. Imports no Ray.

Serve calls `middlewares` in each proxy, because `environment` names it. `BoundedProtocol` bounds
heads, which uvicorn (0.54) does not, and `Front` bounds bodies. The ingress bounds bodies again, by
its own limits."""

import asyncio
import logging
import os
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

from medray.serving.middleware import READING_BYTES, Front
from medray.serving.refusals import Refusal, content
from medray.serving.schemas import BODY_BYTES

log = logging.getLogger(__name__)

NUM_HEADERS = 100
HEAD_BYTES = 1 << 16  # of the URL and all headers, trailers included
HEAD_S = 10.0  # from the connection, or the first byte of a later request, to the end of its head
MAX_PIPELINE = 100  # requests that wait on one connection
# Half of the process's files: Ray needs sockets as well.
CONNECTIONS = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
_TOO_LARGE = Refusal(
    431,
    "head_too_large",
    f"headers: more than {NUM_HEADERS}, or more than {HEAD_BYTES} bytes; send fewer",
)
_TOO_MANY = Refusal(
    429,
    "overloaded",
    f"connection: more than {MAX_PIPELINE} requests wait; read their responses first",
)
_INVALID = Refusal(400, "invalid_http", "this is not a valid HTTP request")
_CALLBACK, _BODY_BYTES = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "MEDRAY_BODY_BYTES"


def environment(body_bytes: int) -> dict[str, str]:
    """Return the variables that Serve's controller needs. Its proxies and replicas inherit them."""
    return {_CALLBACK: f"{__name__}:middlewares", _BODY_BYTES: str(body_bytes)}


def check(body_bytes: int) -> None:
    """Warn if Serve was started without these bounds, or with a smaller bound than the
    application's."""
    variables = environment(body_bytes)
    if os.environ.get(_CALLBACK) == variables[_CALLBACK] and _body_bytes() >= body_bytes:
        return
    log.warning(
        "Serve's proxy: it does not have the bounds of this application; start Serve with %s in "
        "controller_options.runtime_env.env_vars",
        ", ".join(f'{name}: "{value}"' for name, value in variables.items()),
    )


def _body_bytes() -> int:
    return int(os.environ.get(_BODY_BYTES, BODY_BYTES))


def middlewares() -> list[Middleware]:
    """Bound heads in this process, and return the middleware that bounds bodies. Serve calls this
    before it listens."""
    auto.AutoHTTPProtocol = BoundedProtocol  # type: ignore[misc]  # Serve has no setting for uvicorn's `http`
    body_bytes = _body_bytes()
    return [
        Middleware(Front, body_bytes=body_bytes, reading_bytes=max(READING_BYTES, 4 * body_bytes))
    ]


class _OverBoundError(Exception):
    """Stops the parser from within its callbacks."""


class BoundedProtocol(HttpToolsProtocol):
    """Reads a head within bounds of size and time.

    It ignores `Upgrade`, as RFC 9110 permits. A WebSocket would leave all bounds, since one whose
    handshake fails stays open for ever. For HTTP/2, which Java's client offers, httptools loses the
    body."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.refusal = _INVALID
        self.num_headers = self.head_bytes = 0
        # Bytes since a request began or since its last byte of a body; the parser may keep them.
        self.idle_bytes = 0
        self.head_timer: asyncio.TimerHandle | None = None
        self.answering: RequestResponseCycle | None = None  # `cycle` is the newest request instead

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()
        if len(self.connections) > CONNECTIONS:
            # Close one that waits for its client. If one client opens thousands, it is most likely
            # one of those.
            others = (
                one
                for one in self.connections
                if one is not self and isinstance(one, BoundedProtocol)
            )
            waiting = (one for one in others if one.waits_for_client())
            # abort(), because close() waits for clients that never read.
            next(waiting, self).transport.abort()

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
        if len(self.pipeline) >= MAX_PIPELINE:
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
        """Send medray's own error body, unless an earlier response is still under way."""
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
        if self.transport.get_write_buffer_size():  # the client does not read its response
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
            self._await_head()  # reading may be paused while a response is under way
        else:
            self.transport.close()
