"""Who may ask: tokens by their digests, host names, and the addresses that the service listens at.

`Guard` is ASGI middleware before any parsing. It checks these and the size of a body, none of which
Serve bounds."""

import hashlib
import hmac
import ipaddress
import json
import re
import stat
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medray.errors import ConfigError, ServingError
from medray.serving.page import page

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_BYTES = 1 << 20  # of a request, where limits.body_bytes sets no other number
OPEN_PATHS = ("/healthz",)  # a load balancer has no token, and gets the status alone


@dataclass(frozen=True)
class Refusal:
    """Why a request has no answer. It crosses processes as a value: an exception would put a
    traceback into every log on its way."""

    status: int
    type: str
    message: str
    retry_after_s: int | None = None
    param: str | None = None
    code: str | None = None  # the type, where OpenAI's clients look for no other word


class Guard:
    """`hosts` are the names that a browser may have asked for besides loopback's and any address;
    None lets all in."""

    def __init__(
        self,
        app: App,
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
        path = scope["path"].removeprefix(
            scope.get("root_path", "")
        )  # below the application's prefix
        scope.setdefault("state", {})["known"] = refusal is None
        if (
            refusal
            and path not in OPEN_PATHS
            and not (refusal.status == 401 and path in ("", "/") and page.is_wanted(headers))
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
                "Host: is no name of this service; ask 127.0.0.1, or add the name to `hosts`",
            )
        if self.digests is not None and not admits(self.digests, _token(headers)):
            return Refusal(
                401, "unauthorized", "a valid token is needed: Authorization: Bearer TOKEN"
            )
        return None

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, or None as soon as it is known to be too large."""
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


def declared_bytes(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """How large the body is: 0 where there is none, None where its sender does not say."""
    named = {name.lower(): value for name, value in headers}
    if b"transfer-encoding" in named:
        return None
    declared = named.get(b"content-length", b"0")
    # Python refuses to read 5,000 digits; they are too many in any case.
    return int(declared) if declared.isdigit() and len(declared) < 20 else float("inf")


def _token(headers: dict[str, str]) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read already, then what comes after it."""
    is_done = False

    async def again() -> Message:
        nonlocal is_done
        if is_done:
            return await receive()  # waits for the client to leave
        is_done = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def too_large(body_bytes: int) -> Refusal:
    return Refusal(413, "body_too_large", f"the body is larger than {body_bytes} bytes")


_CLOSING = (408, 413)  # the rest of the body is on its way, and is not read


def error_body(refusal: Refusal) -> dict[str, Any]:
    """The form of every error."""
    detail = {
        "message": refusal.message,
        "type": refusal.type,
        "param": refusal.param,
        "code": refusal.code or refusal.type,
    }
    return {"error": detail}


def content(refusal: Refusal) -> bytes:
    return json.dumps(error_body(refusal)).encode()


async def refuse(send: Send, refusal: Refusal, rest: Awaitable[None] | None = None) -> None:
    """Answer; the connection ends once `rest` does."""
    body = content(refusal)
    named = {"content-type": "application/json", "content-length": str(len(body))}
    if refusal.status == 401:
        named["www-authenticate"] = "Bearer"
    if refusal.status in _CLOSING:
        named["connection"] = "close"
    if refusal.retry_after_s is not None:
        named["retry-after"] = str(refusal.retry_after_s)
    raw = [(name.encode(), value.encode()) for name, value in named.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": rest is not None})
    if rest is not None:
        await rest
        await send({"type": "http.response.body", "body": b""})


def check_address(host: str, *, has_tokens: bool) -> None:
    if has_tokens or is_loopback(host):
        return
    raise ServingError(
        f"{host}: an address that others reach needs tokens_file (a SHA-256 a line), or "
        "open_to_all: true to let everybody ask; "
        "127.0.0.1 needs neither"
    )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_named(host: str, names: tuple[str, ...]) -> bool:
    """Whether a Host header names this service: by an address, which no foreign page can have, as
    localhost, or as one of `names`."""
    name, _, port = host.rpartition(":")
    name = (name if port.isdecimal() else host).strip("[]").rstrip(".").lower()
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return (
            name == "localhost"
            or name.endswith(".localhost")
            or name in {one.lower() for one in names}
        )
    return True


_OF_NOTHING = {hashlib.sha256(text).hexdigest() for text in (b"", b"\n")}
_DIGEST = re.compile(r"[0-9a-f]{64}")


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def read(path: Path) -> frozenset[str]:
    """Digests of a file: one a line, blank lines and `#` comments aside."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
        mode = path.expanduser().stat().st_mode
    except OSError as err:
        raise ConfigError(f"{path}: the tokens file cannot be read: {err.strerror}") from None
    if mode & stat.S_IWOTH:
        raise ConfigError(
            f"{path}: every user of this machine may add a token to it; run `chmod o-w` on it"
        )
    entries = [
        (number, line.partition("#")[0].strip().lower()) for number, line in enumerate(lines, 1)
    ]
    for number, line in entries:
        if line and not _DIGEST.fullmatch(line):
            raise ConfigError(
                f"{path}:{number}: is not a SHA-256 in 64 hexadecimal digits; make one with "
                "`sha256sum`"
            )
        if line in _OF_NOTHING:
            raise ConfigError(
                f"{path}:{number}: is the SHA-256 of an empty token, as of a variable that is not "
                "set; make one of a token"
            )
    digests = frozenset(line for _, line in entries if line)
    if not digests:
        raise ConfigError(f"{path}: holds no token, so nobody could ask")
    return digests


def admits(digests: Iterable[str], token: str) -> bool:
    """Every digest is compared, in a time that does not tell how much of it agrees. No token is no
    valid one."""
    given = digest(token)
    return bool(token) and sum(hmac.compare_digest(given, known) for known in digests) > 0
