"""Placement of a study's trials on a cluster: the resources of one trial, and the number of
concurrent trials. It is pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medray.config.trial import ResourcesConfig
from medray.errors import ConfigError
from medray.runtime.cluster import Cluster, Node, share_of_gpu

_MOST_PER_NODE = 8  # default limit of trials per node: each has its base model in memory


@dataclass(frozen=True)
class Placement:
    """The resources of a trial."""

    launcher: Literal["inline", "train"]
    num_workers: int | tuple[int, int]  # a pair is a minimum and a maximum
    cpus: float  # per worker
    gpus: float
    num_at_once: int  # concurrent trials on the cluster

    @property
    def threads(self) -> int:
        return int(self.cpus) or 1

    @property
    def least_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]


def place(
    resources: ResourcesConfig, cluster: Cluster, num_trials: int, *, per_gpu: int = 1
) -> Placement:
    """Choose the resources that the settings leave open. Raise where the cluster can never run a
    trial. Up to `per_gpu` trials share a GPU, where they are more than there are GPUs."""
    gpus = resources.gpus_per_worker
    if gpus is None:
        gpus = float(cluster.gpus >= 1)
        if gpus and per_gpu > 1 and resources.most_workers == 1:
            num_cpus = cluster.cpus / cluster.gpus / (resources.cpus_per_worker or 1)
            num_sharing = min(per_gpu, math.ceil(num_trials / cluster.gpus), int(num_cpus))
            gpus = share_of_gpu(max(1, num_sharing), 1)
    largest = max((int(node.cpus) for node in cluster.nodes if node.gpus >= gpus), default=0)
    cpus = resources.cpus_per_worker or _share(largest, num_trials * resources.most_workers)
    launcher = resources.launcher
    if launcher == "auto":
        launcher = "inline" if resources.most_workers == 1 and gpus <= 1 else "train"
    num_workers = sum(_num_workers_on(node, cpus, gpus) for node in cluster.nodes)
    num_at_once = num_workers // resources.most_workers or int(
        num_workers >= resources.least_workers
    )
    if num_at_once == 0:
        request = f"{resources.least_workers} worker(s) of {cpus} CPU(s)" + (
            f" and {gpus:g} GPU(s)" if gpus else ""
        )
        raise ConfigError(
            f"resources: a trial requires {request}, which this cluster does not have: "
            f"{_show(cluster.nodes)}; "
            "lower resources.num_workers, cpus_per_worker or gpus_per_worker"
        )
    return Placement(launcher, resources.num_workers, cpus, gpus, num_at_once)


def _share(cpus: int, num_workers: int) -> int:
    """Return the CPUs per worker. One thread per trial is fastest in total: two trials of one
    thread train 1.3 times the tokens of one with two."""
    return max(1, cpus // min(num_workers, _MOST_PER_NODE))


def _num_workers_on(node: Node, cpus: float, gpus: float) -> int:
    most = min(node.cpus / cpus, node.gpus / gpus if gpus else math.inf)
    return int(most + 1e-9)  # 1 / 0.1 is less than 10 in parts of two


def _show(nodes: Sequence[Node]) -> str:
    return (
        ", ".join(f"a node with {node.cpus:g} CPU(s) and {node.gpus:g} GPU(s)" for node in nodes)
        or "no node"
    )
