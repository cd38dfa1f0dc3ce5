"""uvicorn's HTTP protocol with bounds of a request's head, which uvicorn (0.54) reads without any. Knows nothing of medray's routes.

An `Upgrade` is ignored, as RFC 9110 lets a server do. To a WebSocket it would leave all bounds (one whose
handshake fails stays open for ever), and to HTTP/2, which Java's client offers, httptools loses the body.
"""

import asyncio
import resource
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from medray.serving.auth import Refused, content

NUM_HEADERS = 100
HEAD_BYTES = 1 << 16  # of the address and all headers, trailers included
HEAD_S = 10.0  # from the connection, or the first byte of a later request, to the end of the head
PIPELINED = 100  # requests that wait for the answer of one before
CONNECTIONS = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2  # Ray's own sockets need some as well
_TOO_LARGE = Refused(431, "head_too_large", f"more than {NUM_HEADERS} headers or {HEAD_BYTES} bytes of them; send fewer")
_TOO_MANY = Refused(429, "overloaded", f"more than {PIPELINED} requests wait on one connection; read the answers first")
_INVALID = Refused(400, "invalid_http", "this is not a valid HTTP request")


class _OverBoundError(Exception):
    """Ends the parser from within its callbacks."""


class BoundedProtocol(HttpToolsProtocol):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.refusal = _INVALID
        self.num_headers = self.head_bytes = 0
        self.idle_bytes = 0  # since a request began, or since the last byte of a body: what the parser may keep
        self.head_timer: asyncio.TimerHandle | None = None
        self.answering: RequestResponseCycle | None = None  # `cycle` is the last one that was read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()
        if len(self.connections) > CONNECTIONS:
            # Any of those that wait for their client: where one client opens thousands, it is most likely one of them.
            others = (one for one in self.connections if one is not self and isinstance(one, BoundedProtocol))
            waiting = (one for one in others if one.waits_for_client())
            next(waiting, self).transport.abort()  # not close(): it waits for clients that never read

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
            lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
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
            head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[self.refusal.status] + head.encode() + body)
        self.transport.close()

    def _count(self, num_bytes: int) -> None:
        self.head_bytes += num_bytes
        if self.head_bytes > HEAD_BYTES or self.num_headers > NUM_HEADERS:
            self.refusal = _TOO_LARGE
            raise _OverBoundError

    def waits_for_client(self) -> bool:
        if self.transport.get_write_buffer_size():  # an answer that is not read, also where it is closing
            return True
        is_busy = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
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
