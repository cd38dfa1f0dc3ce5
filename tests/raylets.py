"""A cluster of several raylets on this machine, as `cluster/local.sh` starts it: each has an address, ports and CPUs of its own."""

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

_LOCAL = Path(__file__).parents[1] / "cluster" / "local.sh"


@dataclass(frozen=True)
class Raylets:
    folder: Path
    environment: Mapping[str, str]  # of local.sh

    def run(self, *arguments: object) -> str:
        # Its output goes to a file: nodes would hold a pipe open.
        with (self.folder / "said").open("w+") as said:
            done = subprocess.run(
                [str(_LOCAL), *map(str, arguments)], env=dict(self.environment), stdout=said, stderr=subprocess.STDOUT, timeout=600
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


@contextmanager
def raylets(num_nodes: int, *, cpus: int, of_head: int) -> Iterator[Raylets]:
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="mr"))  # not pytest's: a socket's path must be short
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "MEDRAY_LOCAL": str(folder),
        "MEDRAY_LOCAL_NET": f"127.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 256}",
        "MEDRAY_RAY": str(Path(sys.executable).with_name("ray")),
        "OMP_NUM_THREADS": "1",
    }
    started = Raylets(folder, environment)
    try:
        started.run("start", num_nodes, cpus, of_head)
        yield started
    finally:
        started.run("stop")
        shutil.rmtree(folder, ignore_errors=True)
