"""ASGI middleware before any parsing: who may ask, and how much may be sent. Serve itself bounds neither."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from medray.serving import keys, page

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/healthz",)  # a load balancer has no token; it gets the status alone


class Guard:
    def __init__(self, app: App, *, body_bytes: int, digests: frozenset[str] | None) -> None:
        self.app, self.body_bytes, self.digests = app, body_bytes, digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        known = self.digests is None or keys.admits(self.digests, _token(headers))
        scope.setdefault("state", {})["known"] = known
        if not known and scope["path"] not in OPEN_PATHS and not (scope["path"] == "/" and page.is_asked_for(headers)):
            await refuse(send, 401, "unauthorized", "a valid token is needed: Authorization: Bearer TOKEN", {"www-authenticate": "Bearer"})
            return
        body = await self._read(headers, receive)
        if body is None:
            await refuse(send, 413, "body_too_large", f"the body is larger than {self.body_bytes} bytes", {"connection": "close"})
            return
        await self.app(scope, _replay(body, receive), send)

    async def _read(self, headers: dict[str, str], receive: Receive) -> bytes | None:
        """The whole body, or None as soon as it is known to be too large."""
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self.body_bytes:
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


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()  # waits for the client to leave
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def refuse(send: Send, status: int, kind: str, message: str, headers: dict[str, str]) -> None:
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": kind}}).encode()
    named = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    raw = [(name.encode(), value.encode()) for name, value in named.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
