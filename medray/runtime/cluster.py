"""The only place that starts or joins Ray, and that sets its environment."""

import contextlib
import json
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from medray.config.environment import COMMIT_VARIABLE
from medray.errors import ConfigError, TrialError
from medray.errors.redaction import redact
from medray.runtime.session_files import make_token, remove_old_sessions, sessions_folder
from medray.storage import checkpoint

log = logging.getLogger(__name__)
# For every process of a job.
JOB_VARIABLES = {
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
    # at Serve's 0.1 s its controller and Ray's GCS take a twentieth of a core, even when idle
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # Our replicas and ingress never block their loop, so threads of Serve's own would only cost a
    # tenth of a request's CPU seconds.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # Serve's lines are in its own files. A second copy on stderr would cost a tenth of a request's
    # CPU seconds.
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # each micro-batch has another length, and the allocator's usual blocks would not fit the next
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": "300",  # 30 s fail on a busy machine
}
_PASSED_ON = ("MEDRAY_CACHE", "HF_HUB_OFFLINE", "HF_HOME", "HF_ENDPOINT", "TOKENIZERS_PARALLELISM")


@dataclass(frozen=True)
class Node:
    cpus: float
    gpus: float
    card: str | None = None  # Ray's name of its GPUs


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


def share_of_gpu(num_processes: int, num_gpus: float) -> float:
    """Return the GPUs of each process: a whole one where there are enough, else an equal part."""
    num_sharing = math.ceil(num_processes / num_gpus)
    return math.floor(10_000 / num_sharing) / 10_000  # Ray counts ten-thousandths


@contextmanager
def start_cluster(
    mode: Literal["auto", "single", "join"] = "auto", *, num_cpus: int | None = None
) -> Iterator[Cluster]:
    """Connect to Ray for the length of a block: `join` the cluster that RAY_ADDRESS names, or start
    a `single` node.

    A node that is started here listens on loopback only and requires a token. It keeps its files
    from other users, and ends with the block."""
    import ray

    if mode == "auto":
        mode = "join" if is_joining() else "single"
    if ray.is_initialized():
        yield _describe(is_joined=is_joining())
        return
    os.environ.update(JOB_VARIABLES)
    # medray shows the progress itself, and keeps the figures of trials, for TensorBoard too.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    # Ctrl-C is medray's: Tune's handler would end the search as if it were done.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    with exiting_on_sigterm():
        if mode == "single":
            _single(num_cpus)
        else:
            _join()
    try:
        # Ray's own handler, which is there from now on, would abort without cleaning up.
        with exiting_on_sigterm():
            yield _describe(is_joined=mode == "join")
    finally:
        ray.shutdown()


@contextmanager
def exiting_on_sigterm() -> Iterator[None]:
    """Exit with status 143 when SIGTERM arrives, which `ray job stop` and Kubernetes send."""
    signals: list[int] = []

    def end(number: int, frame: object) -> None:
        signals.append(number)
        sys.exit(128 + number)

    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, end)
        yield
    except SystemExit as status:
        # Ray says 1 where the signal found it waiting, and 15 where it found Ray's own handler.
        if signals or status.code == signal.SIGTERM:
            sys.exit(128 + signal.SIGTERM)
        raise


def is_joining() -> bool:
    """Return whether the environment names a cluster to join."""
    return bool(os.environ.get("RAY_ADDRESS"))


def num_gpus_here() -> int:
    """Return the number of GPUs that Ray would count on this machine."""
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager as Manager

    count = int(Manager.get_current_node_num_accelerators())
    visible = Manager.get_current_process_visible_accelerator_ids()
    return count if visible is None else min(count, len(visible))


def is_in_folder_of_caller() -> bool:
    """Return whether every driver of this Ray works in the folder of this process, so that a
    relative path has one meaning.

    A worker works where Ray was started. A request to a dashboard (`serve deploy`) has no known
    folder."""
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
    """Return a driver's folder if it runs on this node and belongs to this user, else None."""
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
        raise ConfigError("RAY_ADDRESS is not set; name the cluster to join with it")
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
            f"RAY_ADDRESS {address}: no Ray responds there: {str(err).splitlines()[0]}"
        ) from None


def _describe(*, is_joined: bool) -> Cluster:
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = tuple(
        Node(node.get("CPU", 0.0), node.get("GPU", 0.0), _card(node)) for node in resources
    )
    address = ray.get_runtime_context().worker.node.webui_url
    return Cluster(nodes, f"http://{address}" if address else None, is_joined)


def _card(resources: Mapping[str, float]) -> str | None:
    prefix = "accelerator_type:"
    return next((name.removeprefix(prefix) for name in resources if name.startswith(prefix)), None)


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
    ray._private.ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S = 300  # as above
    port = free_port()
    sessions = sessions_folder()
    remove_old_sessions(sessions)
    umask = os.umask(0o077)  # Ray's processes inherit it

    def put_umask_back() -> None:  # in workers: other users may read releases
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
    except Exception as err:
        # A raylet waits 15 seconds for its agents, by a constant of its own (Ray 2.60, #65983).
        if "timed out during startup" not in str(err):
            raise
        raise TrialError(
            "Ray did not start in time, because this machine is too busy or its disk too slow; "
            "run the command again when other programs leave it a core"
        ) from None
    finally:
        os.umask(umask)


def job_environment(dashboard: str | None) -> dict[str, str]:
    """Return the environment variables of every worker of the job.

    Without the dashboard's address, a trial that is stopped early leaks its placement group if two
    Rays share a host. The process that frees it looks the address up and finds two (Ray 2.60).
    """
    variables = {name: value for name in _PASSED_ON if (value := os.environ.get(name)) is not None}
    for name in [name for name, value in variables.items() if redact(value) != value]:
        log.warning(
            "%s holds a secret and is not passed on, since Ray logs what it passes: set it on "
            "the nodes",
            name,
        )
        del variables[name]
    variables |= JOB_VARIABLES
    if dashboard:
        variables["RAY_API_SERVER_ADDRESS"] = dashboard
    # Trials run in a folder of Ray's, which is no repository; their manifests name the commit.
    if commit := checkpoint.git_commit():
        variables[COMMIT_VARIABLE] = commit
    # Variables of a submitted job reach every worker already, and Ray refuses them twice.
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    job_variables = (job.get("runtime_env") or {}).get("env_vars") or {}
    return {name: value for name, value in variables.items() if name not in job_variables}


def free_port(preference: int = 0) -> int:
    """Return the preferred port if it is free, else any that is."""
    with socket.socket() as listener, contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", preference))
        return int(listener.getsockname()[1])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def free_leaked_groups() -> int:
    """Remove the placement groups of jobs, and of actors of this job, that have ended. Return their
    number. They would hold CPUs and GPUs forever.

    Ray Train's controller leaks its group where it dies while its workers start (Ray 2.60). Groups
    with a name stay. Serve finds its own by name, and its replicas outlive the job that deployed
    them."""
    import ray
    from ray._private.state import actors, jobs, state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util import remove_placement_group
    from ray.util.placement_group import PlacementGroup

    groups = [
        group
        for row in state._connect_and_get_accessor().get_placement_group_table()
        if not (group := PlacementGroupTableData.FromString(row)).name
        and group.state != PlacementGroupTableData.REMOVED
    ]
    dead_jobs = {job["JobID"] for job in jobs() if job["IsDead"]} if groups else set()
    this_job = ray.get_runtime_context().get_job_id()

    def is_leak(group: Any) -> bool:
        job, actor = group.creator_job_id.hex(), group.creator_actor_id
        if job != this_job:
            return job in dead_jobs
        return bool(actor.strip(b"\xff")) and actors(actor.hex()).get("State") == "DEAD"

    leaks = [group for group in groups if is_leak(group)]
    for group in leaks:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
    return len(leaks)
