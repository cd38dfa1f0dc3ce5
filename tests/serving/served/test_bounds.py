"""The bounds of what a proxy and replicas read, on a Serve that runs. The hook and the seam of
uvicorn are Ray's to move."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from support.serve_session import TOKEN, Served

pytestmark = pytest.mark.ray

HEAD = (
    "POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
    f"{TOKEN}\r\nContent-Type: application/json\r\nConnection: close\r\n"
).encode()
BODY = b'{"text": "tumour", "model": "cancer@1"}'
WHOLE = HEAD + b"%sContent-Length: " + str(len(BODY)).encode() + b"\r\n\r\n" + BODY


@contextmanager
def connection_with(served: Served, data: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as client:
        client.sendall(data)
        yield client


def read(client: socket.socket) -> tuple[int, bytes, bytes]:
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    return int(head.split()[1]), head, body


def test_a_head_over_the_bound_is_refused(served: Served) -> None:
    with connection_with(served, HEAD + b"X-A: b\r\n" * 200 + b"\r\n") as client:
        status, _, body = read(client)
    assert (status, json.loads(body)["error"]["type"]) == (431, "head_too_large")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"serve_multiplexed_model_id: \xff\xfe\r\n",
        b"serve-multiplexed-model-id: abc\r\n",
        b"X-Session-Id: \xff\r\n",
        b"X-Request-Timeout-Seconds: 0.000001\r\n",
        b"X-Request-Disconnect-Disabled: \xff\r\n",
        b"X-Request-Id: a b\r\n",
    ],
)
def test_headers_of_serves_own_change_nothing(served: Served, header: bytes) -> None:
    with connection_with(served, WHOLE.replace(b"%s", header)) as client:
        status, head, body = read(client)
    assert status == 200, body
    assert head.lower().count(b"x-request-id") == 1


def test_more_slow_bodies_than_serve_takes_requests_block_no_request(served: Served) -> None:
    """The ingress takes 1,000 requests at a time."""
    with ExitStack() as slow:
        for _ in range(1100):
            slow.enter_context(
                connection_with(
                    served, HEAD + b"X-Request-Timeout-Seconds: 0\r\nContent-Length: 1000\r\n\r\n{"
                )
            )
        time.sleep(1)  # a proxy that passed them on would have done so
        for _ in range(3):
            assert served.client.classify(["tumour"], model="cancer@1").release == "cancer"
            assert served.client.health()["status"] == "ok"


def test_a_declared_and_an_endless_body_are_refused_by_the_limit_of_the_application(
    either: Served,
) -> None:
    body = b" " * 100_001
    for rest in (
        b"Content-Length: 100001\r\n\r\n" + body,
        b"Transfer-Encoding: chunked\r\n\r\n186a1\r\n" + body + b"\r\n0\r\n\r\n",
    ):
        with connection_with(
            either, HEAD.replace(b"/v1/classify", either.path.encode()) + rest
        ) as client:
            status, _, answer = read(client)
        assert (status, json.loads(answer)["error"]["type"]) == (413, "body_too_large")
