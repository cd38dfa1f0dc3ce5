"""The head of a cluster dies, and Ray ends the study. The state of the cluster is in Redis, and the
nodes join a new head."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.chaos import Figures, Study, epochs_trained_twice, figures, write_study
from support.raylets import Raylets, raylets

from medray.runtime.cluster import free_port
from medray.study.run import latest

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """Its address."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip(
            "there is no redis-server on the PATH, which a cluster needs to outlive its head"
        )
    port = free_port()
    settings = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(tmp_path),
    ]
    process = subprocess.Popen([server, *settings], stdout=subprocess.DEVNULL)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def nodes(redis: str) -> Iterator[Raylets]:
    with raylets(
        3, cpus=1, of_head=0, RAY_REDIS_ADDRESS=redis, RAY_gcs_rpc_server_reconnect_timeout_s="300"
    ) as cluster:
        yield cluster


def wait_for_nodes(cluster_env: dict[str, str], nodes: list[str]) -> None:
    """Until the head knows these addresses as nodes that live."""
    look = (
        "import ray, sys, time; ray.init(log_to_driver=False)\n"
        "while not set(sys.argv[1:]) <= {node['NodeManagerAddress'] for node in ray.nodes() if "
        "node['Alive']}: time.sleep(0.5)"
    )
    subprocess.run(
        [sys.executable, "-c", look, *nodes],
        env=os.environ | cluster_env,
        check=True,
        capture_output=True,
        timeout=180,
    )


def test_a_study_is_resumed_on_a_head_that_was_started_again(
    nodes: Raylets, tmp_path: Path, undisturbed_figures: Figures
) -> None:
    path = write_study(tmp_path)
    study = Study(path, cluster_env=nodes.cluster_env)
    before = [nodes.raylet(1), nodes.raylet(2)]
    try:
        study.until(r"tiny-bert-\d+  epoch 2 ")
        start = time.monotonic()
        nodes.run("kill", 0)
        end = study.end()
    finally:
        study.abandon()
    print(
        f"ended with {end.status} after {time.monotonic() - start:.0f} s: "
        f"{end.output.splitlines()[-5:]}"
    )
    assert end.status != 0
    nodes.run("restart", 0)
    wait_for_nodes(nodes.cluster_env, [nodes.address(1), nodes.address(2)])
    print(f"a head and both nodes after {time.monotonic() - start:.0f} s")
    assert [nodes.raylet(1), nodes.raylet(2)] == before  # without a restart
    end = Study(path, "--resume", cluster_env=nodes.cluster_env).end()
    assert end.status == 0, end.output
    run = latest(tmp_path / "runs" / "tiny")
    assert figures(run) == undisturbed_figures
    again = epochs_trained_twice(run)
    print(
        f"epochs trained twice {again:.2f}, all done {time.monotonic() - start:.0f} s after the "
        "kill"
    )
    assert again <= 2  # one evaluation interval for each trial that ran
