"""Nodes without access to the study's folder, and a node with a cut link. The raylets have their
own mount and network namespaces."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.chaos import Figures, Study, epochs_trained_twice, figures, write_study
from support.raylets import Raylets, raylets

from medray.study.run import latest

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(900)]
TAG = f"mr{os.getpid()}"
NET = f"10.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 256}"


def run_or_skip(*command: str) -> None:
    end = subprocess.run(command, capture_output=True, text=True)
    if end.returncode:
        pytest.skip(f"namespaces need root: {' '.join(command)}: {end.stderr.strip()}")


@pytest.fixture
def links() -> Iterator[list[str]]:
    """Two namespaces beside this one, on one bridge; the names of their links."""
    names = [f"{TAG}v{number}" for number in (2, 3)]
    try:
        run_or_skip("ip", "link", "add", f"{TAG}b", "type", "bridge")
        run_or_skip("ip", "address", "add", f"{NET}.1/24", "dev", f"{TAG}b")
        run_or_skip("ip", "link", "set", f"{TAG}b", "up")
        for number, name in zip((2, 3), names, strict=True):
            space = f"{TAG}n{number}"
            run_or_skip("ip", "netns", "add", space)
            run_or_skip(
                "ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", space
            )
            run_or_skip("ip", "link", "set", name, "master", f"{TAG}b", "up")
            run_or_skip("ip", "-n", space, "address", "add", f"{NET}.{number}/24", "dev", "eth0")
            run_or_skip("ip", "-n", space, "link", "set", "eth0", "up")
            run_or_skip("ip", "-n", space, "link", "set", "lo", "up")
        yield names
    finally:
        for number in (2, 3):
            subprocess.run(["ip", "netns", "delete", f"{TAG}n{number}"], capture_output=True)
        subprocess.run(["ip", "link", "delete", f"{TAG}b"], capture_output=True)


@pytest.fixture
def apart(links: list[str]) -> Iterator[Raylets]:
    """A head here, and each node in a namespace, by the last number of its address."""
    inside = (
        f'for word; do case $word in {NET}.[23]) exec ip netns exec "{TAG}n${{word##*.}}" $RAY '
        '"$@" ;; esac; done\nexec $RAY "$@"'
    )
    with raylets(3, cpus=1, of_head=0, node_script=inside, MEDRAY_LOCAL_NET=NET) as cluster:
        yield cluster


def test_a_study_goes_on_when_the_link_of_a_node_is_cut(
    links: list[str], apart: Raylets, tmp_path: Path, undisturbed_figures: Figures
) -> None:
    study = Study(write_study(tmp_path), cluster_env=apart.cluster_env)
    try:
        study.until(r"tiny-bert-\d+  epoch 2 ")
        start = time.monotonic()
        subprocess.run(["ip", "link", "set", links[0], "down"], check=True)
        end = study.end()
    finally:
        study.abandon()
    assert end.status == 0, end.output
    run = latest(tmp_path / "runs" / "tiny")
    again = epochs_trained_twice(run)
    print(f"ended {time.monotonic() - start:.0f} s after the cut; epochs trained twice {again:.2f}")
    # Each node has a trial. That of the cut one repeats at most an evaluation interval, and nothing
    # where its state was stored just before.
    assert again <= 1
    assert figures(run) == undisturbed_figures


def test_a_study_whose_folder_one_node_does_not_see_is_refused(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    run_or_skip("unshare", "--mount", "true")
    runs = tmp_path / "runs"
    runs.mkdir()
    blind = (
        f'case "$*" in *--address*) exec unshare --mount sh -c \'mount -t tmpfs tmpfs {runs} && '
        'exec "$@"\' - $RAY "$@" ;; esac\nexec $RAY "$@"'
    )
    with raylets(2, cpus=1, of_head=1, node_script=blind) as nodes:
        end = Study(path, cluster_env=nodes.cluster_env).end()
        assert end.status == 1, end.output
        assert (
            f"is a folder of one node: {nodes.address(1)} cannot see its files; set storage_path to"
        ) in end.output
        assert not list(latest(runs / "tiny").folder.glob("trials/*"))
