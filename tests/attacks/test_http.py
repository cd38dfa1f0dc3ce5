"""Hostile requests against the routes, and against the process that reads them first."""

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from pydantic import BaseModel, ValidationError
from starlette.testclient import TestClient
from support import fake_service
from uvicorn.protocols.http import auto

from medray.errors import ConfigError
from medray.runtime.cluster import free_port
from medray.serving import auth, front
from medray.serving.api import make_api
from medray.serving.middleware import Front
from medray.serving.openai_schemas import ChatRequest
from medray.serving.schemas import CHAT_PATH, Limits
from medray.tasks.base.route import ExplainRequest
from medray.tasks.classification import ClassifyRequest

CANARY = "Zebediah-Q-Canary-4711"
POST = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED_HEAD = POST + b"Transfer-Encoding: chunked\r\n\r\n"
MB = b"a" * (1 << 20)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The routes behind what Serve's proxy puts before them, on uvicorn as Serve starts it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto, "AutoHTTPProtocol", auto.AutoHTTPProtocol)  # put back at the end
        patch.setattr(front, "HEAD_S", 1.0)
        (bounds,) = front.middlewares()
        assert bounds.kwargs["body_bytes"] == Limits().body_bytes
        app = Front(
            fake_service.api(fake_service.Service("cancer@best")), body_bytes=100_000, body_s=1.0
        )
        own_port = free_port()
        server = uvicorn.Server(
            uvicorn.Config(app, host="127.0.0.1", port=own_port, log_level="critical")
        )
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield own_port
        server.should_exit = True
        thread.join(20)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def read(client: socket.socket) -> bytes:
    """All until the server closes."""
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def exchange(port: int, data: bytes) -> bytes:
    with connect(port) as client:
        client.sendall(data)
        return read(client)


def error(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["type"]


def is_well(port: int) -> bool:
    return exchange(port, GET + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "data",
    [
        GET + b"".join(b"X-%d: a\r\n" % number for number in range(200)) + b"\r\n",
        GET + b"X-A: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["many headers", "a large header", "a large address"],
)
def test_a_head_over_the_bound_is_refused_in_the_form_of_every_error(
    port: int, data: bytes
) -> None:
    assert error(exchange(port, data)) == (431, "head_too_large")
    assert is_well(port)


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (GET + b"X-A: ", MB),
        (GET, b"X-A: a\r\n" * 100_000),
        (b"GET /", MB),
        (CHUNKED_HEAD + b"1\r\n{\r\n0\r\nX-A: ", MB),
        (CHUNKED_HEAD + b"1;", MB),
        (CHUNKED_HEAD, b"100000\r\n" + MB + b"\r\n"),
        (POST + b"Content-Length: 9999999999\r\n\r\n", MB),
    ],
    ids=[
        "header",
        "headers",
        "address",
        "trailer",
        "chunk extension",
        "chunked body",
        "declared body",
    ],
)
def test_what_never_ends_is_cut_off_before_the_server_holds_much(
    port: int, start: bytes, piece: bytes
) -> None:
    with connect(port) as client:
        client.sendall(start)
        with pytest.raises(ConnectionError):
            for _ in range(200):
                client.sendall(piece)
    assert is_well(port)


@pytest.mark.parametrize(
    "data",
    [b"GET / HTP\r\n\r\n", POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}"],
    ids=["version", "chunk"],
)
def test_what_is_no_http_is_refused_and_closed(port: int, data: bytes) -> None:
    answer = exchange(port, data)
    assert not answer or error(answer) == (400, "invalid_http")
    assert is_well(port)


@pytest.mark.parametrize(
    "drip", [b"X-A: b\r\n", b"\r\n", b""], ids=["headers", "blank lines", "nothing"]
)
def test_a_head_that_takes_too_long_is_closed(port: int, drip: bytes) -> None:
    with connect(port) as client:
        client.sendall(GET if drip != b"\r\n" else b"")
        start = time.monotonic()
        with pytest.raises(ConnectionError):
            while True:
                time.sleep(0.1)
                client.sendall(drip or b"")
                client.setblocking(False)
                try:
                    if client.recv(10) == b"":
                        raise ConnectionResetError
                except BlockingIOError:
                    assert time.monotonic() - start < 15
                finally:
                    client.setblocking(True)


def test_bodies_that_take_too_long_are_refused_and_no_route_hears_of_them(port: int) -> None:
    clients = [connect(port) for _ in range(50)]
    for client in clients:
        client.sendall(POST + b"Content-Length: 1000\r\n\r\n{")
    assert is_well(port)
    assert {error(read(client)) for client in clients} == {(408, "body_too_slow")}
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 1500000\r\n\r\n" + b" " * 1_500_000,
        b"Transfer-Encoding: chunked\r\n\r\n16e360\r\n" + b" " * 1_500_000 + b"\r\n0\r\n\r\n",
    ],
    ids=["declared", "chunked"],
)
def test_a_body_over_the_limit_is_refused_and_its_client_can_read_why(
    port: int, rest: bytes
) -> None:
    assert error(exchange(port, POST + rest)) == (413, "body_too_large")


def test_a_length_of_five_thousand_digits_is_too_large(port: int) -> None:
    assert error(exchange(port, POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}"))[0] in (
        400,
        413,
    )


def test_requests_on_one_connection_are_answered_in_order_up_to_a_number(port: int) -> None:
    one = POST + b"X-Request-Id: p%d\r\nContent-Length: 12\r\n\r\n" + b'{"text":"a"}'
    with connect(port) as client:
        client.sendall(
            b"".join(one % number for number in range(50)) + GET + b"Connection: close\r\n\r\n"
        )
        answer = read(client)
    assert re.findall(rb"x-request-id: p(\d+)", answer) == [b"%d" % number for number in range(50)]
    flood = exchange(port, b"".join(one % number for number in range(2000)))
    assert flood.count(b"x-request-id") < 2000
    assert is_well(port)


def test_over_the_number_of_connections_one_that_waits_for_its_client_is_closed(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "CONNECTIONS", 20)
    clients = [connect(port) for _ in range(100)]
    for client in clients[::2]:
        with contextlib.suppress(ConnectionError):
            client.sendall(POST + b"Content-Length: 1000\r\n\r\n{")
    assert all(is_well(port) for _ in range(10))
    num_closed = 0
    for client in clients:
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            num_closed += not read(client)
        client.close()
    assert num_closed >= 80


@pytest.mark.parametrize(
    "start",
    [
        POST + b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\n",
        (GET.replace(b"/healthz", b"/docs") + b"\r\n") * 99,
    ],
    ids=["a WebSocket that never begins", "answers that nobody reads"],
)
def test_connections_that_hang_without_sending_block_no_client(
    port: int, start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "CONNECTIONS", 10)
    clients = [socket.socket() for _ in range(12)]
    for client in clients:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        with contextlib.suppress(ConnectionError):
            client.sendall(start)
    time.sleep(3)  # what is sent to them fills the kernel's buffers
    assert all(is_well(port) for _ in range(5))
    for client in clients:
        client.close()


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket"])
@pytest.mark.parametrize("part", [1 << 20, 1], ids=["at once", "byte by byte"])
def test_the_body_of_a_request_that_offers_an_upgrade_is_read(
    port: int, upgrade: bytes, part: int
) -> None:
    """As Java's client sends each of its first ones."""
    body = b'{"text":"a"}'
    head = (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %s\r\n"
        b"HTTP2-Settings: AAEAAEAA\r\nContent-Length: %d\r\n\r\n"
    )
    one = POST + head % (upgrade, len(body)) + body
    data = one * 2 + GET + b"Connection: close\r\n\r\n"
    with connect(port) as client:
        for at in range(0, len(data), part):
            client.sendall(data[at : at + part])
        answer = read(client)
    assert answer.count(b"HTTP/1.1 200") == 3, answer


def test_a_client_that_leaves_ends_its_answer_also_where_another_request_waits_behind(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    service = fake_service.Service("adviser@best", pause_s=0.3)
    body = b'{"messages":[{"role":"user","content":"a"}],"stream":true}'
    one = (
        POST.replace(b"/v1/classify", CHAT_PATH.encode())
        + b"Content-Length: %d\r\n\r\n" % len(body)
        + body
    )
    with fake_service.running(fake_service.api(service)) as url:
        with connect(int(url.strip("/").rpartition(":")[2])) as client:
            client.sendall(one + GET + b"\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"
        time.sleep(2.5)  # the whole answer would have been told
    assert [event.status for event in service.events] == [499]
    assert not caplog.records


def test_uvicorn_takes_the_bounded_protocol_where_serve_names_none(port: int) -> None:
    config = uvicorn.Config(fake_service.api(fake_service.Service()))
    config.load()
    assert config.http_protocol_class is front.BoundedProtocol


# The middleware alone.


def request(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "path": "/v1/classify", "headers": list(headers)}


async def ask(
    front_app: Front, scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]]
) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        messages.append(message)

    await front_app(scope, receive, send)
    return messages


def test_headers_that_steer_serve_do_not_pass_and_others_do() -> None:
    all_headers: list[tuple[bytes, bytes]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        all_headers.extend(scope["headers"])

    steering = [
        (b"serve_multiplexed_model_id", b"\xff\xfe"),
        (b"Serve-Multiplexed-Model-Id", b"abc"),
        (b"x-session-id", b"\xff"),
        (b"x-request-timeout-seconds", b"0"),
        (b"X-Request-Disconnect-Disabled", b"?1"),
        (b"x-request-id", b"\x1b[31mred"),
        (b"x-request-id", b"a" * 65),
    ]
    asyncio.run(
        ask(
            Front(app, body_bytes=10),
            request(*steering, (b"x-request-id", b"a-1"), (b"x-api-key", b"\xff")),
            _never,
        )
    )
    assert all_headers == [(b"x-request-id", b"a-1"), (b"x-api-key", b"\xff")]


async def _never() -> dict[str, Any]:
    raise AssertionError("nothing is to be read")


def test_of_half_read_bodies_over_the_room_for_all_the_largest_goes_and_a_small_one_is_read() -> (
    None
):
    read_bodies: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        read_bodies.append((await receive())["body"])

    async def scene() -> list[list[dict[str, Any]]]:
        front_app = Front(app, body_bytes=1000, reading_bytes=1500, body_s=0.5)
        large = [
            asyncio.ensure_future(ask(front_app, _chunked_request(), _pieces(b"x" * size, None)))
            for size in (800, 600)
        ]
        await asyncio.sleep(0)
        small = asyncio.ensure_future(
            ask(front_app, _chunked_request(), _pieces(b"y" * 100, b"y" * 100, b""))
        )
        answers = await asyncio.gather(*large, small)
        assert (front_app.bodies, front_app.num_bytes) == ({}, 0)
        return answers

    first, second, small = asyncio.run(scene())
    assert (first[0]["status"], second[0]["status"], small) == (503, 408, [])
    assert read_bodies == [b"y" * 200]


def _chunked_request() -> dict[str, Any]:
    return request((b"transfer-encoding", b"chunked"))


def _pieces(*parts: bytes | None) -> Callable[[], Awaitable[dict[str, Any]]]:
    """Of None it waits for ever; an empty part is the end."""
    left: AsyncIterator[bytes | None] = _each(parts)

    async def receive() -> dict[str, Any]:
        part = await anext(left)
        if part is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": part, "more_body": part != b""}

    return receive


async def _each(parts: tuple[bytes | None, ...]) -> AsyncIterator[bytes | None]:
    for part in parts:
        await asyncio.sleep(0)
        yield part


def test_the_ids_that_the_ingress_and_serve_name_become_one() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [[b"x-request-id", b"a"], [b"X-Request-ID", b"a"], [b"b", b"c"]],
            }
        )

    (start,) = asyncio.run(ask(Front(app, body_bytes=10), request(), _never))
    assert start["headers"] == [[b"x-request-id", b"a"], [b"b", b"c"]]


def test_an_application_whose_proxy_has_other_bounds_reports_what_to_set(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in front.environment(500).items():
        monkeypatch.setenv(name, value)
    for smaller in (400, 500):
        front.check(smaller)
    assert not caplog.text
    front.check(700)
    assert 'MEDRAY_BODY_BYTES: "700"' in caplog.text
    caplog.clear()
    monkeypatch.delenv("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH")
    front.check(500)
    assert "medray.serving.front:middlewares" in caplog.text


# The routes.


def http(
    hosts: tuple[str, ...] | None = None,
    digests: frozenset[str] | None = None,
    host: str = "testserver",
) -> TestClient:
    service = fake_service.Service("cancer@best")
    api = make_api(service, Limits(), digests, hosts=hosts, explanations=True)
    return TestClient(api, base_url=f"http://{host}", raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (ClassifyRequest, {"inputs": [1] * 100_000}),
        (ClassifyRequest, {"inputs": [{}] * 100_000}),
        (ClassifyRequest, {f"k{number}": 1 for number in range(80_000)}),
        (ExplainRequest, {"text": "a"} | {f"k{number}": 1 for number in range(80_000)}),
        (ChatRequest, {"messages": [1] * 100_000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [1] * 100_000}]}),
        (ChatRequest, {"messages": [{"role": "user", "content": "a"}], "stop": [1] * 100_000}),
    ],
)
def test_the_first_wrong_of_many_inputs_ends_the_validation(
    model: type[BaseModel], body: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError) as error:
        model.model_validate(body)
    assert error.value.error_count() < 5


def test_a_wrong_input_is_named_once() -> None:
    answer = http().post("/v1/classify", json={"inputs": [1, 2, 3]})
    assert answer.json()["error"]["message"] == "inputs.0: Input should be a valid string"
    empty = http().post("/v1/classify", json={"inputs": []})
    assert "at least 1" in empty.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"text": "a", "model": CANARY},
        {"text": "a", CANARY: 1},
        {"text": "a", "label": CANARY * 40_000},
        {"text": "a", "x" * 100_000: 1},
        {"text": "a", "model": CANARY * 40_000},
        {CANARY: {CANARY: 1}},
    ],
)
@pytest.mark.parametrize(
    "path",
    [
        "/v1/classify",
        "/v1/choose",
        "/v1/chat/completions",
        "/v1/decisions",
        "/v1/systemone",
        "/v1/explain",
    ],
)
def test_an_error_repeats_no_model_and_no_strange_key(path: str, body: dict[str, Any]) -> None:
    answer = http().post(path, json=body)
    assert answer.status_code >= 400
    assert "Canary" not in answer.text
    assert len(answer.content) < 1000


def test_an_error_of_a_models_page_does_not_repeat_its_name() -> None:
    answer = http().get(f"/v1/models/{CANARY}")
    assert (answer.status_code, "Canary" in answer.text) == (404, False)
    assert "allowed: cancer@best" in answer.text


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example:8000",
        "2130706433",
    ],
)
def test_a_foreign_name_that_is_made_to_point_at_loopback_is_not_answered(host: str) -> None:
    rebound = http(hosts=("medray.clinic.example",), host=host)
    for answer in (
        rebound.post("/v1/classify", json={"text": "a"}),
        rebound.get("/v1/releases"),
        rebound.get("/", headers={"accept": "text/html"}),
    ):
        assert (answer.status_code, answer.json()["error"]["type"]) == (421, "unknown_host")
        assert "evil" not in answer.text
    assert rebound.get("/healthz").json() == {"status": "ok"}  # as to everybody without a token


@pytest.mark.parametrize(
    "host",
    [
        "localhost:8000",
        "127.0.0.1:8000",
        "[::1]:8000",
        "10.1.2.3",
        "Medray.Clinic.example",
        "app.localhost",
    ],
)
def test_a_name_of_this_service_and_every_address_is_answered(host: str) -> None:
    other_name = http(hosts=("medray.clinic.example",), host=host)
    assert other_name.post("/v1/classify", json={"text": "a"}).status_code == 200
    assert other_name.get("/healthz").json()["releases"] == {}


def test_an_application_below_a_prefix_has_the_same_open_paths_and_statuses() -> None:
    api = make_api(
        fake_service.Service("adviser@best"), Limits(), frozenset({auth.digest("right")})
    )
    below = TestClient(api, root_path="/a", raise_server_exceptions=False)
    assert below.get("/a/healthz").json() == {"status": "ok"}
    assert (
        below.get("/a/", headers={"accept": "text/html"})
        .headers["content-type"]
        .startswith("text/html")
    )
    assert below.get("/a/v1/models").status_code == 401
    assert below.post(f"/a{CHAT_PATH}", json={}, headers={"x-api-key": "right"}).status_code == 400


def test_a_second_host_header_does_not_help(port: int) -> None:
    app = make_api(fake_service.Service("cancer@best"), Limits(), None, hosts=())
    with TestClient(app, base_url="http://localhost") as client:
        answer = client.get("/v1/models", headers=[("host", "localhost"), ("host", "evil.example")])
    assert answer.status_code == 421


def test_the_documentation_loads_nothing_and_runs_no_script() -> None:
    answer = http().get("/docs")
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<script" not in answer.text
    assert not re.search(r"(?:https?:)?//", answer.text)
    for part in (
        "POST /v1/classify",
        "POST /v1/chat/completions",
        'id="ClassifyRequest"',
        "the release that answers",
    ):
        assert part in answer.text
    assert set(re.findall(r'href="#(.*?)"', answer.text)) <= set(
        re.findall(r'id="(.*?)"', answer.text)
    )
    for path in ("/redoc", "/docs/oauth2-redirect"):
        assert http().get(path).status_code == 404


# Tokens.


@pytest.mark.parametrize("nothing", ["", "\n"])
def test_the_digest_of_a_variable_that_is_not_set_is_no_token(tmp_path: Path, nothing: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"{auth.digest('right')}\n{auth.digest(nothing)}\n")
    with pytest.raises(ConfigError, match="tokens:2: it is the SHA-256 of an empty token"):
        auth.read_digests(path)


def test_no_token_is_admitted_by_no_digest() -> None:
    digests = frozenset({auth.digest("")})
    assert not auth.admits(digests, "")
    for headers in (
        {},
        {"x-api-key": ""},
        {"authorization": "Bearer "},
        {"authorization": "Bearer"},
    ):
        assert http(digests=digests).get("/v1/models", headers=headers).status_code == 401


def test_a_tokens_file_that_every_user_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(auth.digest("right") + "\n")
    path.chmod(0o646)
    with pytest.raises(ConfigError, match="every user of this machine may write to it"):
        auth.read_digests(path)
    path.chmod(0o664)
    assert auth.admits(auth.read_digests(path), "right")
