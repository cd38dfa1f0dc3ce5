"""A cluster of several raylets on this machine, as `cluster/local.sh` starts it: each has an
address, ports and CPUs of its own."""

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
        with (self.folder / "said").open("w+") as said:
            done = subprocess.run(
                [str(_LOCAL), *map(str, arguments)],
                env=dict(self.environment),
                stdout=said,
                stderr=subprocess.STDOUT,
                timeout=600,
            )
            said.seek(0)
            told = said.read()
        assert done.returncode == 0, told
        return told

    @property
    def joined(self) -> dict[str, str]:
        """The variables of a process that uses the cluster."""
        return dict(re.findall(r"(RAY_\w+)=(\S+)", (self.folder / "env").read_text()))

    def address(self, node: int) -> str:
        return f"{self.environment['MEDRAY_LOCAL_NET']}.{node + 1}"

    def raylet(self, node: int) -> int:
        """The process id of a node's raylet."""
        below = serve_session.processes(int((self.folder / f"node-{node}.pid").read_text()))
        (found,) = (number for number, name in below.items() if re.match(r"\S*/raylet ", name))
        return found


@contextmanager
def raylets(
    num_nodes: int, *, cpus: int, of_head: int, wrapped: str = "", **variables: str
) -> Iterator[Raylets]:
    """`wrapped`: shell lines that every node is started through, where `$RAY` is Ray's command and
    `"$@"` its arguments."""
    folder = Path(
        tempfile.mkdtemp(dir="/tmp", prefix="mr")
    )  # not pytest's: a socket's path must be short
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_")
    } | {
        "MEDRAY_LOCAL": str(folder),
        "MEDRAY_LOCAL_NET": f"127.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 256}",
        "MEDRAY_RAY": str(Path(sys.executable).with_name("ray")),
        "OMP_NUM_THREADS": "1",
    }
    if wrapped:
        wrapper = folder / "ray-wrapped"
        wrapper.write_text(f"#!/bin/sh\nRAY={environment['MEDRAY_RAY']}\n{wrapped}\n")
        wrapper.chmod(0o755)
        environment["MEDRAY_RAY"] = str(wrapper)
    started = Raylets(folder, environment | variables)
    try:
        started.run("start", num_nodes, cpus, of_head)
        yield started
    finally:
        started.run("stop")
        shutil.rmtree(folder, ignore_errors=True)
