"""Starts a cluster of several raylets on this machine with `cluster/local.sh`: each has its own
address, ports and CPUs."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support import serve_session

_LOCAL = Path(__file__).parents[2] / "cluster" / "local.sh"


@dataclass(frozen=True)
class Raylets:
    folder: Path
    environment: Mapping[str, str]  # of local.sh

    def run(self, *arguments: object) -> str:
        # Its output goes to a file: nodes would hold a pipe open.
        with (self.folder / "output").open("w+") as file:
            result = subprocess.run(
                [str(_LOCAL), *map(str, arguments)],
                env=dict(self.environment),
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=600,
            )
            file.seek(0)
            output = file.read()
        assert result.returncode == 0, output
        return output

    @property
    def cluster_env(self) -> dict[str, str]:
        """The environment variables of a process that joins the cluster."""
        return dict(re.findall(r"(RAY_\w+)=(\S+)", (self.folder / "env").read_text()))

    def address(self, node: int) -> str:
        return f"{self.environment['MEDRAY_LOCAL_NET']}.{node + 1}"

    def raylet(self, node: int) -> int:
        """Return the process id of a node's raylet."""
        below = serve_session.processes(int((self.folder / f"node-{node}.pid").read_text()))
        (process_id,) = (number for number, name in below.items() if re.match(r"\S*/raylet ", name))
        return process_id


@contextmanager
def raylets(
    num_nodes: int, *, cpus: int, of_head: int, node_script: str = "", **variables: str
) -> Iterator[Raylets]:
    """Start a cluster and stop it at the end.

    `node_script` holds the shell lines that start each node: `$RAY` is Ray's command and `"$@"`
    its arguments."""
    folder = Path(
        tempfile.mkdtemp(dir="/tmp", prefix="mr")
    )  # not pytest's folder: a socket's path must be short
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_")
    } | {
        "MEDRAY_LOCAL": str(folder),
        "MEDRAY_LOCAL_NET": f"127.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 256}",
        "MEDRAY_RAY": str(Path(sys.executable).with_name("ray")),
        "OMP_NUM_THREADS": "1",
    }
    if node_script:
        wrapper = folder / "ray-wrapped"
        wrapper.write_text(f"#!/bin/sh\nRAY={environment['MEDRAY_RAY']}\n{node_script}\n")
        wrapper.chmod(0o755)
        environment["MEDRAY_RAY"] = str(wrapper)
    cluster = Raylets(folder, environment | variables)
    try:
        cluster.run("start", num_nodes, cpus, of_head)
        yield cluster
    finally:
        cluster.run("stop")
        shutil.rmtree(folder, ignore_errors=True)
