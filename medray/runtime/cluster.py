"""The only place that starts or joins Ray, and that sets its environment."""

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medray.errors import ConfigError
from medray.errors.redaction import redact
from medray.storage.private import make_folder

log = logging.getLogger(__name__)
# For every process of a job.
_SHARED = {
    # Train polls its workers for reports this often: 2 s would be most of a short epoch
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # else the Train page of Ray's dashboard is empty
    # workers may wait a day for others' jobs: after a minute each trial would fail
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "86400",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # a dead proxy is noticed after 30 s otherwise
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "3",
    # one that starts on a busy machine is killed after 5 s, and `medray serve` fails with it
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
    # at Serve's 0.1 s its controller and Ray's GCS take a twentieth of a core, asked or not
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # Our replicas and ingress never block their loop, so threads of Serve's own would only cost a
    # tenth of a request's CPU seconds.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # Serve's lines are in its own files. Told once more, Ray reads and passes on what nobody asked
    # for: a tenth of a request's CPU seconds.
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Tune uses a trial's process again once its thread has ended. It waits 2 s for that, too short
    # for a busy machine, and loses the next trial.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "600",
}
_KEPT_S = 7 * 24 * 3600.0  # for how long an ended session's logs stay
_LONGEST = 107 - len(
    "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
)  # of the folder that Ray keeps sessions in
_PASSED_ON = ("MEDRAY_CACHE", "HF_HUB_OFFLINE", "HF_HOME", "HF_ENDPOINT", "TOKENIZERS_PARALLELISM")


@dataclass(frozen=True)
class Node:
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Cluster:
    nodes: tuple[Node, ...]
    dashboard: str | None  # its address
    is_joined: bool  # others may use it too

    @property
    def cpus(self) -> float:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        return sum(node.gpus for node in self.nodes)


@contextmanager
def start_cluster(
    mode: Literal["auto", "single", "join"] = "auto", *, num_cpus: int | None = None
) -> Iterator[Cluster]:
    """A connection to Ray for the length of a block: `join` the cluster that RAY_ADDRESS names, or
    start a `single` node of our own.

    A node of our own listens on loopback only, asks for a token, keeps its files from other users,
    and ends with the block."""
    import ray

    if mode == "auto":
        mode = "join" if is_joining() else "single"
    if ray.is_initialized():
        yield _describe(is_joined=is_joining())
        return
    os.environ.update(_SHARED)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # medray shows the progress itself
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = (
        "1"  # and keeps the figures of trials, for TensorBoard too
    )
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = (
        "1"  # Ctrl-C is ours: Tune's handler would end the search as if it were done
    )
    if mode == "single":
        _single(num_cpus)
    else:
        _join()
    try:
        with (
            exiting_on_sigterm()
        ):  # Ray's own handler, which is there from now on, would abort without cleaning up
            yield _describe(is_joined=mode == "join")
    finally:
        ray.shutdown()


@contextmanager
def exiting_on_sigterm() -> Iterator[None]:
    """From here on, what `ray job stop` and Kubernetes send ends the block with its own exit
    status."""
    received: list[int] = []

    def end(number: int, frame: object) -> None:
        received.append(128 + number)
        sys.exit(128 + number)

    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, end)
        yield
    except SystemExit:
        if received:  # Ray says 1 where the signal found it waiting
            sys.exit(received[0])
        raise


def is_joining() -> bool:
    """Whether the environment names a cluster to join, rather than that a node of our own is
    started."""
    return bool(os.environ.get("RAY_ADDRESS"))


def is_in_folder_of_caller() -> bool:
    """Whether whoever uses this Ray stands in the folder that this process works in, so that a
    relative path has one meaning.

    A worker works where Ray was started. Of a request to a dashboard (`serve deploy`) nobody knows
    where it was made."""
    import ray

    if not ray.is_initialized():
        return True
    jobs = ray._private.worker.global_worker.gcs_client.get_all_job_info(
        skip_submission_job_info_field=True, skip_is_running_tasks_field=True
    )
    drivers = [
        job
        for job in jobs.values()
        if not job.is_dead and not job.config.ray_namespace.startswith("_ray_internal")
    ]
    return bool(drivers) and all(_folder_of(driver) == os.getcwd() for driver in drivers)


def _folder_of(driver: Any) -> str | None:
    """Where a driver works, if it runs on this node and belongs to this user."""
    import ray

    if driver.driver_address.ip_address != ray.util.get_node_ip_address():
        return None
    try:
        return os.readlink(f"/proc/{driver.driver_pid}/cwd")
    except OSError:
        return None


def _join() -> None:
    import ray
    from ray.dashboard.utils import ray_address_to_api_server_url

    address = os.environ.get("RAY_ADDRESS")
    if not address:
        raise ConfigError("to join a cluster, RAY_ADDRESS must name it")
    if "://" in address:
        raise ConfigError(
            f"RAY_ADDRESS {address}: must be a cluster's own address, HOST:6379; dashboards take "
            "jobs: `ray job submit`"
        )
    try:
        dashboard = ray_address_to_api_server_url(address)
        ray.init(
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"env_vars": job_environment(dashboard)},
        )
    except (ConnectionError, ValueError) as err:
        raise ConfigError(
            f"RAY_ADDRESS {address}: no Ray answers there: {str(err).splitlines()[0]}"
        ) from None


def _describe(*, is_joined: bool) -> Cluster:
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = tuple(Node(held.get("CPU", 0.0), held.get("GPU", 0.0)) for held in resources)
    address = ray.get_runtime_context().worker.node.webui_url
    return Cluster(nodes, f"http://{address}" if address else None, is_joined)


def _single(num_cpus: int | None) -> None:
    import ray

    if not os.environ.get("RAY_AUTH_TOKEN"):
        make_token(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token")
    # A head that dies is noticed after a minute otherwise, and the study would say so no earlier.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "10")
    # By default Ray lowers its workers' priority by 15, which leaves them a thirtieth of a core
    # that another program wants too.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray's own switch for a node that listens on loopback alone; it is read when ray is imported,
    # which may have been long ago.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    port = free_port()
    sessions = private_folder() / "ray"  # one below, since Ray opens its own folder to all users
    if len(os.fsencode(sessions)) > _LONGEST:
        raise ConfigError(
            f"{sessions}: too long for a socket's path; name a place of at most {_LONGEST - 20} "
            "characters with RAY_TMPDIR"
        )
    remove_old_sessions(sessions)
    umask = os.umask(0o077)  # Ray's processes inherit it

    def put_umask_back() -> (
        None
    ):  # in workers, which write what other users may read, such as releases
        os.umask(umask)

    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=port,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _temp_dir=str(sessions),
            runtime_env={
                "env_vars": job_environment(f"http://127.0.0.1:{port}"),
                "worker_process_setup_hook": put_umask_back,
            },
        )
    finally:
        os.umask(umask)


def private_folder() -> Path:
    """This user's own in the system's folder for temporary files, or where TMPDIR is too long for
    sockets in /tmp."""
    from ray._common.utils import get_default_system_temp_dir

    name, place = f"medray-{os.getuid()}", get_default_system_temp_dir()
    if "RAY_TMPDIR" not in os.environ and len(os.fsencode(f"{place}/{name}/ray")) > _LONGEST:
        place = "/tmp"
    folder = make_folder(Path(place) / name, "RAY_TMPDIR")
    folder.chmod(0o700)
    return folder


def remove_old_sessions(sessions: Path) -> None:
    """Ray removes no session. One that still runs writes to its logs every minute."""
    for session in sessions.glob("session_2*"):
        with contextlib.suppress(FileNotFoundError):  # another start removes it as well
            if (
                max(path.lstat().st_mtime for path in (session, *session.glob("logs/*")))
                < time.time() - _KEPT_S
            ):
                shutil.rmtree(session, ignore_errors=True)


def job_environment(dashboard: str | None) -> dict[str, str]:
    """What every worker of the job gets.

    Without the dashboard's address a trial that is stopped early leaks its placement group wherever
    two Rays share a host: the process that frees it looks the address up and finds two (Ray 2.60).
    """
    passed = {name: value for name in _PASSED_ON if (value := os.environ.get(name)) is not None}
    for name in [name for name, value in passed.items() if redact(value) != value]:
        log.warning(
            "%s holds a secret and is not passed on, since Ray logs what it passes: set it on the "
            "nodes",
            name,
        )
        del passed[name]
    wanted = passed | _SHARED | ({"RAY_API_SERVER_ADDRESS": dashboard} if dashboard else {})
    # What a submitted job was given reaches every worker already, and Ray refuses to be told twice.
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    given = (job.get("runtime_env") or {}).get("env_vars") or {}
    return {name: value for name, value in wanted.items() if name not in given}


def make_token(path: str) -> None:
    """Ray writes its token for all to read; it is made here for its owner alone."""
    import secrets

    try:
        token = Path(path).expanduser()
        token.parent.mkdir(parents=True, exist_ok=True)
        if not token.exists():
            os.close(os.open(token, os.O_WRONLY | os.O_CREAT, 0o600))
            token.write_text(secrets.token_hex(32))
        if token.stat().st_uid == os.getuid():  # one that a cluster mounts is left as it is
            token.chmod(0o600)
    except (OSError, RuntimeError) as err:  # a home folder that is read-only, or no home folder
        raise ConfigError(
            f"{path}: Ray's token cannot be kept there: {err}; name a file of yours with "
            "RAY_AUTH_TOKEN_PATH"
        ) from None


def free_port(wanted: int = 0) -> int:
    """The wanted port where nobody listens on it, else any that is free."""
    with socket.socket() as asked, contextlib.suppress(OSError):
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        asked.bind(("127.0.0.1", wanted))
        return int(asked.getsockname()[1])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def free_leaked_groups() -> int:
    """Remove placement groups that jobs left behind when they ended: they hold CPUs and GPUs for
    ever. How many there were.

    Those with a name stay: somebody finds them by it, as Serve does, whose replicas outlive the job
    that deployed them."""
    import ray
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    if not (ended := {job["JobID"] for job in ray._private.state.jobs() if job["IsDead"]}):
        return 0
    num_digits = len(
        next(iter(ended))
    )  # a placement group's id ends with that of the job that made it
    leaked = [
        key
        for key, group in placement_group_table().items()
        if group["state"] != "REMOVED" and not group["name"] and key[-num_digits:] in ended
    ]
    for key in leaked:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(key)))
    return len(leaked)
