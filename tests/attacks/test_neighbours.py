"""Other users of the machine, and other services on it: Ray's session, the audit log, a port, an
application's name."""

import json
import logging
import os
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import tiny
from support.serve_session import end_serve

from medray import cli
from medray.client import Client
from medray.errors import ConfigError, ServingError
from medray.registry.registry import Registry
from medray.runtime import cluster as runtime
from medray.runtime import session_files
from medray.runtime.cluster import Cluster, free_port
from medray.serving import app, replica_setup
from medray.serving.schemas import AppOptions
from medray.storage.private import make_folder

OTHER_USER = 65534  # nobody
LOCAL = Path(__file__).parents[2] / "cluster" / "local.sh"
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to act as another user")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("neighbours") / "runs"
    registry = Registry(str(place))
    registry.publish(tiny.checkpoint(), "cancer")
    registry.point("cancer", "best", 1)
    return place


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def as_other_user(script: str, *arguments: object) -> str:
    result = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *map(str, arguments)],
        user=OTHER_USER,
        group=OTHER_USER,
        extra_groups=[],
        env={"PATH": os.environ["PATH"]},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )
    return result.stdout + result.stderr


def session() -> Path:
    import ray

    return Path(ray._private.worker.global_worker.node.get_session_dir_path())


@pytest.mark.ray
def test_ray_keeps_its_session_in_a_folder_of_this_user_and_its_logs_to_this_user(
    cluster: Cluster,
) -> None:
    import ray

    @ray.remote
    def umask() -> int:
        before = os.umask(0)
        os.umask(before)
        return before

    own = session().parents[1]
    assert (own.name, mode(own), own.lstat().st_uid) == (
        f"medray-{os.getuid()}",
        0o700,
        os.getuid(),
    )
    logs = [
        path
        for path in session().glob("logs/*.log")
        if path.name.startswith(("dashboard", "gcs", "raylet"))
    ]
    assert logs
    assert [path.name for path in logs if mode(path) & 0o077] == []
    before = os.umask(0)
    os.umask(before)
    assert (
        ray.get(umask.remote()) == before
    )  # what trials and replicas write is as readable as it was


@pytest.mark.ray
@needs_root
def test_another_user_reads_no_file_of_rays_session_and_replaces_no_socket(
    cluster: Cluster,
) -> None:
    folder = session()
    assert (folder / "sockets" / "raylet").is_socket()
    output = as_other_user(
        'find "$1" -type f -readable | wc -l; mv "$1/sockets/raylet" "$1/sockets/r0"; mv '
        '"$1/logs" "$1/stolen"',
        folder,
    )
    assert output.count("Permission denied") == 3
    assert "\n0\n" in f"\n{output}"
    assert (folder / "sockets" / "raylet").is_socket()
    assert (folder / "logs").is_dir()


@pytest.mark.parametrize(
    "prepared", ["link", "open to all", "a file", pytest.param("another user's", marks=needs_root)]
)
def test_a_folder_of_medrays_name_that_another_user_prepared_is_refused(
    prepared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    ours = tmp_path / f"medray-{os.getuid()}"
    match prepared:
        case "link":
            (tmp_path / "theirs").mkdir(mode=0o700)
            ours.symlink_to(tmp_path / "theirs")
        case "open to all":
            ours.mkdir()
            ours.chmod(0o777)
        case "a file":
            ours.touch()
        case "another user's":
            ours.mkdir(mode=0o700)
            os.chown(ours, OTHER_USER, OTHER_USER)
    with pytest.raises(ConfigError, match="RAY_TMPDIR"):
        session_files.private_folder()


def test_a_folder_of_our_own_is_closed_to_others_and_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert mode(session_files.private_folder()) == 0o700
    session_files.private_folder().chmod(0o755)
    assert mode(session_files.private_folder()) == 0o700


def test_places_that_cannot_be_made_are_named_with_their_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home folder that is read-only, or none, as of a container's user without a name."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"file/medray-.*: cannot be created: .*RAY_TMPDIR"):
        session_files.private_folder()
    for path in (str(tmp_path / "file" / "token"), "~nobody-of-this-name/token"):
        with pytest.raises(
            ConfigError, match=r"token: Ray's token cannot be kept there: .*RAY_AUTH_TOKEN_PATH"
        ):
            session_files.make_token(path)


def test_a_folder_too_long_for_sockets_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / ("t" * 50)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(place))
    assert session_files.private_folder() == Path(f"/tmp/medray-{os.getuid()}")
    monkeypatch.setenv("RAY_TMPDIR", str(place))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", None)
    with pytest.raises(
        ConfigError, match=r"medray-.*/ray: too long for a socket's path; .* RAY_TMPDIR"
    ):
        with runtime.start_cluster("single", num_cpus=1):
            pass


@needs_root
def test_a_token_that_a_cluster_mounts_is_left_as_it_is(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o440)
    os.chown(token, OTHER_USER, OTHER_USER)
    session_files.make_token(str(token))
    assert (mode(token), token.read_text()) == (0o440, "secret")


def test_sessions_that_ended_a_week_ago_are_removed_and_those_that_still_write_stay(
    tmp_path: Path,
) -> None:
    old, new, running = (tmp_path / f"session_2026-01-0{day}_1" for day in (1, 2, 3))
    month_ago = time.time() - 30 * 24 * 3600
    for folder in (old, new, running):
        (folder / "logs").mkdir(parents=True)
        (folder / "logs" / "raylet.out").touch()
    for path in (old, old / "logs", old / "logs" / "raylet.out", running):
        os.utime(path, (month_ago, month_ago))
    session_files.remove_old_sessions(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [new.name, running.name]


@pytest.mark.parametrize(
    "prepared", ["link", "open to all", pytest.param("another user's", marks=needs_root)]
)
def test_a_local_cluster_is_not_started_in_a_folder_that_another_user_prepared(
    prepared: str, tmp_path: Path
) -> None:
    folder, theirs = tmp_path / "local", tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    if prepared == "link":
        folder.symlink_to(theirs)
    else:
        folder.mkdir()
        folder.chmod(0o777 if prepared == "open to all" else 0o700)
    if prepared == "another user's":
        os.chown(folder, OTHER_USER, OTHER_USER)
    # No Ray: a start that is not refused ends at once, with another sentence.
    environment = os.environ | {"MEDRAY_LOCAL": str(folder), "MEDRAY_RAY": "/bin/false"}
    result = subprocess.run(
        [str(LOCAL), "start", "1"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert "MEDRAY_LOCAL" in result.stderr
    assert list(folder.iterdir()) == []


def test_a_forged_local_cluster_is_not_stopped(tmp_path: Path) -> None:
    """Its process ids would be those of this user's other processes."""
    tmp_path.chmod(0o777)
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as victim:
        (tmp_path / "node-0.pid").write_text(f"{victim.pid}\n")
        result = subprocess.run(
            [str(LOCAL), "stop"],
            env=os.environ | {"MEDRAY_LOCAL": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        is_alive = victim.poll() is None
        victim.kill()
    assert result.returncode == 1
    assert "MEDRAY_LOCAL" in result.stderr
    assert is_alive


@pytest.fixture
def handler(tmp_path: Path) -> Iterator[replica_setup.AppendHandler]:
    audit_handler = replica_setup.AppendHandler(
        make_folder(tmp_path / "log", "audit_log") / "audit.log"
    )
    yield audit_handler
    audit_handler.close()


def line(text: str) -> logging.LogRecord:
    return logging.LogRecord("medray.audit", logging.INFO, "", 0, text, None, None)


def test_folders_that_are_made_on_the_way_are_closed_to_others_whatever_the_umask(
    tmp_path: Path,
) -> None:
    umask = os.umask(0)
    try:
        state_folder = make_folder(tmp_path / "state" / "medray", "audit_log")
    finally:
        os.umask(umask)
    assert [
        stat.S_IMODE(folder.stat().st_mode) for folder in (state_folder, state_folder.parent)
    ] == [0o700, 0o700]


def test_the_audit_log_is_this_users_alone_and_only_grows(
    handler: replica_setup.AppendHandler,
) -> None:
    handler.emit(line("one"))
    with handler.path.open("r+b") as file:  # whoever else has it open for writing
        file.seek(0)
        handler.emit(line("two"))
    assert handler.path.read_text() == "one\ntwo\n"
    assert (mode(handler.path), mode(handler.path.parent)) == (0o600, 0o700)
    handler.path.rename(handler.path.with_suffix(".1"))  # as a rotation does
    handler.emit(line("three"))
    assert handler.path.read_text() == "three\n"


def test_lines_of_several_replicas_in_one_audit_log_stay_whole(
    handler: replica_setup.AppendHandler,
) -> None:
    others = [replica_setup.AppendHandler(handler.path) for _ in range(4)]
    texts = [f"{number % 10}" * 20_000 for number in range(4)]

    def write(other: replica_setup.AppendHandler, text: str) -> None:
        for _ in range(100):
            other.emit(line(text))

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, others, texts))
    assert sorted(handler.path.read_text().splitlines()) == sorted(texts * 100)


def test_an_audit_log_where_others_could_touch_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "own").mkdir(mode=0o700)
    (tmp_path / "own" / "link.log").symlink_to(tmp_path / "elsewhere")
    try:
        for name, reason in (
            ("open/audit.log", "other users may write to it"),
            ("own/link.log", "symbolic link"),
            ("own", "directory"),
        ):
            with pytest.raises(ServingError, match=f"audit_log .*{name}.*{reason}"):
                replica_setup.open_audit_log(str(tmp_path / name))
    finally:
        replica_setup.audit.propagate = True
    assert not (tmp_path / "elsewhere").exists()


def test_serve_on_a_port_in_use_is_refused_before_it_starts_anything(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runtime, "start_cluster", None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as listener:
        # What Serve's proxy does: the kernel lets a second one listen on the same port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert (
            cli.main(["serve", "cancer@best", "--port", str(port), "--storage-path", str(storage)])
            == 1
        )
    assert (
        f"127.0.0.1:{port}: another process listens there; stop it, or give another --host or "
        "--port"
    ) in capsys.readouterr().err


def test_of_two_services_that_start_at_once_on_a_port_one_is_refused() -> None:
    port = free_port()
    claim = f"from medray.serving import app\nwith app.claim('127.0.0.1', {port}): pass"
    with app.claim("127.0.0.1", port):
        second = subprocess.run(
            [sys.executable, "-c", claim], capture_output=True, text=True, timeout=60
        )
    assert "another process listens there" in second.stderr
    with app.claim("127.0.0.1", port):  # and it is free again
        pass


@pytest.mark.ray
def test_serve_on_a_shared_cluster_leaves_what_is_served_there_as_it_is(
    cluster: Cluster, storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray import serve

    class Theirs:
        def __call__(self) -> str:
            return "theirs"

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    port = free_port()
    log = tmp_path / "audit" / "audit.log"
    options = AppOptions(
        releases=("cancer@best",), storage_path=str(storage), precision="fp32", audit_log=str(log)
    )
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        serve.run(serve.deployment(Theirs).bind(), name="medray", route_prefix="/")
        with (
            pytest.raises(
                ServingError,
                match=f"listens at 127.0.0.1:{port}; give --host 127.0.0.1 --port {port}",
            ),
            app.serving(options, host="127.0.0.1", port=free_port()),
        ):
            pass
        with (
            pytest.raises(
                ServingError,
                match=("Serve's application medray has this address; give another --prefix"),
            ),
            app.serving(options, host="127.0.0.1", port=port),
        ):
            pass
        with app.serving(options, host="127.0.0.1", port=port, prefix="/cancer") as url:
            assert url == f"http://127.0.0.1:{port}/cancer"
            assert Client(url).classify(["fever"]).release == "cancer"
            assert len(serve.status().applications) == 2
            assert read(f"http://127.0.0.1:{port}/") == "theirs"
        assert list(serve.status().applications) == ["medray"]
        assert read(f"http://127.0.0.1:{port}/") == "theirs"
    finally:
        end_serve()
    (line_of_log,) = log.read_text().splitlines()
    assert json.loads(line_of_log[line_of_log.index("{") :])["release"] == "cancer@1"
    assert (mode(log), mode(log.parent)) == (0o600, 0o700)


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as response:
        return str(response.read().decode())
