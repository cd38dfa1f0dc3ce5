"""One request to a service that a study asks. The response may be hostile: its size, its time and
its number of tries have limits, no redirect is followed, and no error repeats a part of it."""

import json
import logging
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    HTTPSConnection,
    IncompleteRead,
    responses,
)
from typing import Any, NoReturn

from medray.config.addresses import resolve
from medray.config.reference import ReferenceConfig
from medray.errors import TrialError

log = logging.getLogger(__name__)
_MOST_BYTES = 16 << 20  # of a response: 400 questions with 255 options take 9 MB
_BLOCK = 1 << 16
_TRIES = 5
_LONGEST_PAUSE_S = 60.0
_TRANSIENT = {408, 429, 500, 502, 503, 504}
Sleep = Callable[[float], object]


@dataclass(frozen=True, slots=True)
class ServiceResponse:
    content: Any  # JSON, not checked further
    seconds: float  # of the try that succeeded


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        """Leave a redirect as the error that its status is: texts and token go to one address."""


class _Connection(HTTPConnection):
    """A connection that adds its socket to those of a deadline."""

    def __init__(self, *arguments: Any, sockets: list[socket.socket], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.sockets = sockets

    def connect(self) -> None:
        super().connect()
        self.sockets.append(self.sock)


class _EncryptedConnection(_Connection, HTTPSConnection):
    pass


class _Connections(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def __init__(self, sockets: list[socket.socket]) -> None:
        super().__init__()
        self.sockets = sockets

    def http_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self.do_open(partial(_Connection, sockets=self.sockets), request)

    def https_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self.do_open(partial(_EncryptedConnection, sockets=self.sockets), request)


@contextmanager
def _deadline(seconds: float) -> Iterator[list[socket.socket]]:
    """Yield a list whose sockets are shut down once the time is over. `http.client` reads heads and
    trailers without an end; its own timeout begins again with every byte."""
    sockets: list[socket.socket] = []
    is_over = threading.Event()

    def end() -> None:
        is_over.set()
        for one in sockets:
            with suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield sockets
    except (OSError, HTTPException):
        if not is_over.is_set():
            raise
    finally:
        timer.cancel()
    if is_over.is_set():
        raise TimeoutError


def post(
    reference: ReferenceConfig, body: Mapping[str, Any], *, sleep: Sleep = time.sleep
) -> ServiceResponse:
    """Send a request and return its response. A service that is busy is asked again."""
    for number in range(_TRIES):
        try:
            return _post(reference, body)
        except urllib.error.HTTPError as err:
            err.close()
            status, pause_s = err.code, _pause_s(err, number)
            if status not in _TRANSIENT or number == _TRIES - 1:
                _fail(reference, f"answered {status} {responses.get(status, '')}", _advice(status))
            if pause_s > _LONGEST_PAUSE_S:
                _fail(reference, f"answered {status} and requires a pause of {pause_s:.0f} s")
            reason = f"answered {status}"
        except (OSError, HTTPException) as err:
            pause_s, reason = float(2**number), f"does not answer ({_reason(err)})"
            if number == _TRIES - 1:
                _fail(reference, reason)
        log.info("%s: %s; next try in %.0f s", reference.url, reason, pause_s)
        sleep(pause_s)
    raise AssertionError


def _post(reference: ReferenceConfig, body: Mapping[str, Any]) -> ServiceResponse:
    # An environment's proxy would see texts that are to stay on this machine.
    proxies = [urllib.request.ProxyHandler({})] if reference.is_local else []
    request = urllib.request.Request(
        reference.url,
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json", "accept": "application/json"},
    )
    with resolve(reference.token) if reference.token else nullcontext("") as token:
        if token:
            if not (token.isascii() and token.isprintable()):
                _fail(reference, "its token has characters that no header may have")
            request.add_unredirected_header("authorization", f"Bearer {token}")
        start = time.monotonic()
        with _deadline(reference.timeout_s) as sockets:
            opener = urllib.request.build_opener(_NoRedirect, _Connections(sockets), *proxies)
            with opener.open(request, timeout=reference.timeout_s) as response:
                raw = _read(response, reference, start + reference.timeout_s)
    seconds = time.monotonic() - start
    try:
        return ServiceResponse(json.loads(raw, parse_constant=_no_number), seconds)
    except (ValueError, RecursionError):
        _fail(reference, "its response is no valid JSON")


def _read(response: HTTPResponse, reference: ReferenceConfig, end: float) -> bytes:
    blocks, size = [], 0
    while block := response.read1(_BLOCK):
        size += len(block)
        blocks.append(block)
        if size > _MOST_BYTES:
            _fail(reference, f"its response has more than {_MOST_BYTES >> 20} MB")
        if time.monotonic() > end:
            _fail(reference, f"its response takes more than {reference.timeout_s:g} s")
    if response.length:  # read1 does not notice that bytes are missing
        raise IncompleteRead(b"", response.length)
    return b"".join(blocks)


def _pause_s(err: urllib.error.HTTPError, number: int) -> float:
    """Return the seconds that the service requires, or else twice as many as before."""
    seconds = err.headers.get("Retry-After", "").strip()
    is_number = seconds.isascii() and seconds.isdigit() and len(seconds) < 10
    return float(seconds) if is_number else float(2**number)


def _advice(status: int) -> str:
    if 300 <= status < 400:
        return "redirects are not followed; set url to the address of the service itself"
    if status in (401, 403):
        return "set the reference's token, or correct it"
    if status == 404:
        return "correct url and model"
    return "correct the reference, or wait, and continue with --resume"


def _reason(err: Exception) -> str:
    """Return the reason of the operating system, or a kind of error: others repeat the response."""
    cause = err.reason if isinstance(err, urllib.error.URLError) else err
    return (isinstance(cause, OSError) and cause.strerror) or type(cause).__name__


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)


def _fail(reference: ReferenceConfig, what: str, advice: str = "") -> NoReturn:
    advice = advice or "correct the reference, or continue with --resume once it answers"
    raise TrialError(f"reference {reference.url}: {what.strip()}; {advice}")


def fail_on_content(reference: ReferenceConfig, row_id: str, reason: str) -> NoReturn:
    """Raise for a response that does not answer the questions about a row."""
    _fail(
        reference,
        f"its response about row {row_id} is not one of the {reference.form} format: {reason}",
        "correct url, model and api, or remove the reference",
    )
