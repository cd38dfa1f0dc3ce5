"""Tests of the environment of processes of a job, and of what finished jobs leave behind."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medray.errors import ConfigError, TrialError
from medray.runtime import cluster as runtime
from medray.runtime.cluster import Cluster, start_cluster
from medray.storage import files


@pytest.mark.ray
def test_workers_know_the_dashboard_and_poll_often(cluster: Cluster) -> None:
    import ray

    @ray.remote
    def environment() -> tuple[dict[str, str], int]:
        return dict(os.environ), os.nice(0)

    variables, niceness = ray.get(environment.remote())
    assert niceness == os.nice(0)  # a worker has the priority of any other program
    assert not cluster.is_joined
    assert variables["RAY_API_SERVER_ADDRESS"] == cluster.dashboard
    assert variables["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "0.3"
    assert variables["RAY_USAGE_STATS_ENABLED"] == "0"
    assert variables["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


def test_a_ray_that_a_busy_machine_starts_too_slowly_is_reported_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def time_out(**options: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", time_out)
    with (
        pytest.raises(TrialError, match=r"Ray did not start in time.* run the command again when"),
        start_cluster("single"),
    ):
        pass


@pytest.mark.ray
def test_the_dashboard_has_minutes_to_start_on_a_busy_machine(cluster: Cluster) -> None:
    import ray

    assert ray._private.ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S == 300
    variable = "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT"
    assert float(os.environ[variable]) > 30


@pytest.mark.ray
def test_a_node_of_our_own_listens_on_loopback_and_its_token_is_private(cluster: Cluster) -> None:
    import ray

    assert cluster.dashboard is not None
    assert cluster.dashboard.startswith("http://127.0.0.1:")
    assert ray.get_runtime_context().gcs_address.startswith("127.0.0.1:")
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


@pytest.mark.ray
def test_inside_a_running_ray_that_one_is_used_and_left_running(cluster: Cluster) -> None:
    import ray

    with start_cluster() as inner:
        assert not inner.is_joined
        assert inner.cpus == cluster.cpus == 4
    assert ray.is_initialized()


@pytest.mark.ray
def test_placement_groups_of_ended_jobs_are_removed_and_those_of_running_ones_stay(
    cluster: Cluster,
) -> None:
    import ray
    from ray.util import placement_group, placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    leave = (
        "import ray; from ray.util import placement_group; ray.init(log_to_driver=False)\n"
        "groups = [placement_group([{'CPU': 1}], lifetime='detached', name=name) for name in ('', "
        "'SERVE_REPLICA::kept')]\n"
        "ray.get([group.ready() for group in groups])"
    )
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    subprocess.run(
        [sys.executable, "-c", leave], env=environment, check=True, capture_output=True, timeout=60
    )
    own = placement_group([{"CPU": 1}])
    ray.get(own.ready())
    assert runtime.free_leaked_groups() == 1
    states = {
        group["name"]: group["state"] for group in placement_group_table().values() if group["name"]
    }
    assert states["SERVE_REPLICA::kept"] == "CREATED"
    assert placement_group_table(own)["state"] == "CREATED"
    assert runtime.free_leaked_groups() == 0
    (group_id,) = (
        key
        for key, group in placement_group_table().items()
        if group["name"] == "SERVE_REPLICA::kept"
    )
    for group in (own, PlacementGroup(ray.PlacementGroupID.from_hex(group_id))):
        remove_placement_group(group)


@pytest.mark.ray
def test_placement_groups_of_an_actor_that_died_are_freed(cluster: Cluster) -> None:
    import ray
    from ray.util import placement_group, placement_group_table

    @ray.remote(num_cpus=0)
    class Owner:
        def make(self) -> str:
            group = placement_group([{"CPU": 1}])
            ray.get(group.ready())
            return str(group.id.hex())

        def wait(self) -> None:
            time.sleep(600)

    owners = [Owner.remote() for _ in range(2)]
    group_ids = ray.get([owner.make.remote() for owner in owners])
    ray.kill(owners[0])
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(owners[0].wait.remote())
    assert runtime.free_leaked_groups() == 1
    assert [placement_group_table()[group_id]["state"] for group_id in group_ids] == [
        "REMOVED",
        "CREATED",
    ]
    ray.kill(owners[1])
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(owners[1].wait.remote())
    assert runtime.free_leaked_groups() == 1


def test_joining_needs_an_address_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(ConfigError, match="RAY_ADDRESS is not set; name the cluster"),
        start_cluster("join"),
    ):
        pass


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_an_address_of_something_else_than_a_cluster_is_refused(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match="must be a cluster's own address"), start_cluster():
        pass


def test_every_worker_learns_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.checkpoint, "git_commit", lambda: "abc-dirty")
    assert runtime.job_environment(None)["MEDRAY_GIT_COMMIT"] == "abc-dirty"
    monkeypatch.setattr(runtime.checkpoint, "git_commit", lambda: None)  # outside a repository
    assert "MEDRAY_GIT_COMMIT" not in runtime.job_environment(None)


def test_what_a_job_was_given_is_not_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/shared/hf")
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert runtime.job_environment(None)["HF_HOME"] == "/shared/hf"
    monkeypatch.setenv(
        "RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"env_vars": {"HF_HOME": "/shared/hf"}}}'
    )
    assert "HF_HOME" not in runtime.job_environment(None)


def test_a_relative_storage_path_is_made_absolute_and_outlives_a_submitted_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert files.absolute("runs") == tmp_path / "runs"
    assert files.absolute(f"file://{tmp_path}/x") == tmp_path / "x"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert files.absolute("runs") == tmp_path / "home" / "medray" / "runs"
    assert files.absolute("/shared/runs") == Path("/shared/runs")


def test_sigterm_ends_with_its_own_status_where_ray_makes_another_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    for name, stand_in in (
        ("_single", lambda num_cpus: None),
        ("_describe", lambda is_joined: None),
    ):
        monkeypatch.setattr(runtime, name, stand_in)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for name in (
        *runtime.JOB_VARIABLES,
        "RAY_AIR_NEW_OUTPUT",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS",
        "TUNE_DISABLE_SIGINT_HANDLER",
    ):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # restored afterwards
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end, start_cluster("single"):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except SystemExit:
                sys.exit(1)  # as ray.wait does
        assert end.value.code == 128 + signal.SIGTERM
        with pytest.raises(SystemExit) as end, start_cluster("single"):
            sys.exit(3)
        assert end.value.code == 3
    finally:
        signal.signal(signal.SIGTERM, before)
