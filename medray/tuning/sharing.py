"""Whether every node of a cluster sees the folder that a study writes to: trials write there, and a resume reads it, from any node."""

import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from medray.errors import ConfigError

_PATIENCE_S = 10.0  # a file server may show a new file to others only after a while
_START_S = 120.0


def check_shared(folder: Path, look: Callable[[Path], Mapping[str, bool]] | None = None) -> None:
    """Raise where a node does not see a file that is written here. `look` tells of each other node by its address."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".seen-by-all-", suffix=f"-{socket.gethostname()}") as file:
        blind = sorted(address for address, sees in (look or _others)(Path(file.name)).items() if not sees)
    if blind:
        raise ConfigError(
            f"storage_path: {folder} is a folder of one node: {', '.join(blind)} cannot see what is written to it; "
            "set storage_path to a folder that every node mounts (NFS, EFS, Filestore, a ReadWriteMany volume)"
        )


def sees(path: Path, patience_s: float = _PATIENCE_S) -> bool:
    end = time.monotonic() + patience_s
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _others(path: Path) -> dict[str, bool]:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    asked = {}
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] != here:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[node["NodeManagerAddress"]] = ray.remote(sees).options(num_cpus=0, scheduling_strategy=there).remote(path)
    found = {}
    for address, answer in asked.items():
        try:
            found[address] = bool(ray.get(answer, timeout=_START_S))
        except RayError as err:
            raise ConfigError(f"node {address} cannot run what this study would run on it: {str(err).strip().splitlines()[-1]}") from None
    return found
