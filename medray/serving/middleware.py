"""ASGI middleware that runs before any parsing: `Front` in Serve's proxy, `Guard` and
`UnexpectedErrors` in the ingress. Serve itself has no bounds. Imports no Ray."""

import asyncio
import contextlib
import ipaddress
import logging
import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medray.serving.auth import admits
from medray.serving.page import home
from medray.serving.refusals import Refusal, refuse, too_large

log = logging.getLogger(__name__)
READING_BYTES = 64 << 20  # of all incomplete bodies together, at least
BODY_S = 30.0  # from the head of a request to the end of its body
OPEN_PATHS = ("/healthz",)  # load balancers have no token; they get the status only
# The rest of a refused body is read and dropped, so that its client reads the refusal.
_LINGER_S, _LINGER_BYTES = 1.0, 8 << 20
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
# Serve obeys these headers from any client. They switch off its timeout, its watch for clients that
# disconnect, and its choice of a replica; bytes that are not UTF-8 cause a 500. medray needs none.
_SERVES_OWN = {
    b"serve-multiplexed-model-id",
    b"x-session-id",
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
}


class Guard:
    """Middleware that checks host names, tokens and the size of a body. `hosts` are names allowed
    besides localhost and IP addresses; None allows every name."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        body_bytes: int,
        digests: frozenset[str] | None,
        hosts: tuple[str, ...] | None = None,
    ) -> None:
        self.app, self.body_bytes, self.digests, self.hosts = app, body_bytes, digests, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        refusal = self._check(scope, headers)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        scope.setdefault("state", {})["has_access"] = refusal is None
        if (
            refusal
            and path not in OPEN_PATHS
            and not (refusal.status == 401 and path in ("", "/") and home.is_wanted(headers))
        ):
            await refuse(send, refusal)
            return
        body = await self._read(scope, receive)
        if body is None:
            await refuse(send, too_large(self.body_bytes))
            return
        await self.app(scope, replay(body, receive), send)

    def _check(self, scope: Scope, headers: dict[str, str]) -> Refusal | None:
        names = [
            value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"host"
        ]
        if self.hosts is not None and not all(is_named(name, self.hosts) for name in names):
            return Refusal(
                421,
                "unknown_host",
                "Host: not a name of this service; use 127.0.0.1, or add the name to `hosts`",
            )
        if self.digests is not None and not admits(self.digests, _token(headers)):
            return Refusal(
                401,
                "unauthorized",
                "Authorization: no valid token; send `Authorization: Bearer TOKEN`",
            )
        return None

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the whole body, or None as soon as it is too large."""
        if (declared_bytes(scope["headers"]) or 0) > self.body_bytes:
            return None
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            part = message.get("body", b"")
            size += len(part)
            if size > self.body_bytes:
                return None
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)


def _token(headers: dict[str, str]) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")


def is_named(host: str, names: tuple[str, ...]) -> bool:
    """Return whether a Host header is an IP address, localhost or one of `names`. A foreign web
    page cannot have an address as its host."""
    name, _, port = host.rpartition(":")
    name = (name if port.isdecimal() else host).strip("[]").rstrip(".").lower()
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return (
            name == "localhost"
            or name.endswith(".localhost")
            or name in {other.lower() for other in names}
        )
    return True


class Front:
    """Middleware that reads a whole body, within bounds of size and time, before it calls the
    application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        body_bytes: int,
        reading_bytes: int = READING_BYTES,
        body_s: float = BODY_S,
    ) -> None:
        self.app, self.body_bytes = app, body_bytes
        self.reading_bytes, self.body_s = reading_bytes, body_s
        self.bodies: dict[asyncio.Timeout, bytearray] = {}
        self.num_bytes = 0  # of all bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["headers"] = [
            (name, value) for name, value in scope["headers"] if _passes(name, value)
        ]
        length = declared_bytes(scope["headers"])
        if length != 0:
            is_too_large = length is not None and length > self.body_bytes
            body = too_large(self.body_bytes) if is_too_large else await self._read(receive)
            if isinstance(body, Refusal):
                await refuse(send, body, _rest(receive) if body.status == 413 else None)
                return
            if body is None:  # the client disconnected
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
                    f"body: it was not complete after {self.body_s:g} s; send it faster",
                )
            return Refusal(
                503, "overloaded", "the server receives too many bodies at once; try again later", 1
            )
        finally:
            self._drop(timeout)

    def _make_room(self) -> None:
        """Drop the largest bodies first, so that requests of a usual size are always read."""
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
        return _REQUEST_ID.fullmatch(value) is not None  # Serve logs it and sends it back
    return plain not in _SERVES_OWN


async def _rest(receive: Receive) -> None:
    """Read and drop what the client still sends, for a moment."""
    num_bytes = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while num_bytes < _LINGER_BYTES:
                message = await receive()
                num_bytes += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def _with_one_id(send: Send) -> Send:
    """Return a `send` that keeps one `x-request-id`, since the ingress and Serve each add one."""

    async def forward(message: Message) -> None:
        if message["type"] == "http.response.start":
            ids = [
                header
                for header in message["headers"]
                if bytes(header[0]).lower() == b"x-request-id"
            ]
            for extra in ids[1:]:
                message["headers"].remove(extra)
        await send(message)

    return forward


def declared_bytes(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """Return the size of the body by its headers: 0 without a body, None if they do not say."""
    values = {name.lower(): value for name, value in headers}
    if b"transfer-encoding" in values:
        return None
    length = values.get(b"content-length", b"0")
    # Python refuses to parse thousands of digits; such a body is too large anyway.
    return int(length) if length.isdigit() and len(length) < 20 else float("inf")


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that delivers a body which was read already, then what follows it."""
    is_done = False

    async def again() -> Message:
        nonlocal is_done
        if is_done:
            return await receive()  # waits until the client disconnects
        is_done = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


class UnexpectedErrors:
    """Middleware that turns an unexpected exception into a typed 500. The log gets its type and
    place, and no value.

    It is plain ASGI, because Starlette's base class creates a task per request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def watch(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception as err:
            log.error("%s at %s", type(err).__name__, _innermost(err))
            if has_begun or scope["type"] != "http":
                raise
            message = "the request could not be answered; the server's log has the cause"
            await refuse(send, Refusal(500, "internal_error", message))


def _innermost(err: BaseException) -> str:
    trace = err.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "an unknown place"
