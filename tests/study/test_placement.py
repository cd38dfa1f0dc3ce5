"""The resources of a trial on a cluster. A trial that can never run is refused at once."""

import pytest

from medray.config.trial import ResourcesConfig
from medray.errors import ConfigError
from medray.runtime.cluster import Cluster, Node
from medray.study.placement import place


def cluster(*nodes: tuple[float, float]) -> Cluster:
    return Cluster(tuple(Node(*node) for node in nodes), None, is_joined=False)


def test_open_settings_follow_the_cluster_and_the_number_of_trials() -> None:
    alone = place(ResourcesConfig(), cluster((2, 0)), num_trials=1)
    assert (alone.launcher, alone.cpus, alone.gpus, alone.num_at_once) == ("inline", 2, 0, 1)
    many = place(ResourcesConfig(), cluster((2, 0)), num_trials=8)
    assert (many.cpus, many.num_at_once) == (1, 2)
    large = place(ResourcesConfig(), cluster((64, 0)), num_trials=100)
    assert (large.cpus, large.num_at_once) == (8, 8)


def test_a_gpu_is_taken_where_there_is_one_and_its_trial_runs_in_its_own_process() -> None:
    two_nodes = cluster((16, 4), (16, 4))
    placement = place(ResourcesConfig(), two_nodes, num_trials=20)
    assert (placement.launcher, placement.gpus, placement.num_at_once) == ("inline", 1, 8)
    several = place(ResourcesConfig(num_workers=2), two_nodes, num_trials=20)
    assert (several.launcher, several.gpus, several.num_at_once) == ("train", 1, 4)
    none = place(ResourcesConfig(gpus_per_worker=0), cluster((16, 4)), num_trials=1)
    assert (none.launcher, none.gpus) == ("inline", 0)


@pytest.mark.parametrize("num_sharing", range(1, 17))
def test_as_many_trials_run_on_a_gpu_as_parts_of_it_are_requested(num_sharing: int) -> None:
    resources = ResourcesConfig(gpus_per_worker=round(1 / num_sharing, 4), cpus_per_worker=1)
    placement = place(resources, cluster((32, 1)), num_trials=100)
    assert placement.num_at_once == int(1 / round(1 / num_sharing, 4) + 1e-9)


def test_trials_share_a_gpu_only_where_they_are_more_than_there_are_gpus() -> None:
    def at(num_trials: int, *nodes: tuple[float, float], **settings: int) -> tuple[float, int]:
        placement = place(
            ResourcesConfig(**settings), cluster(*nodes), num_trials=num_trials, per_gpu=8
        )
        return placement.gpus, placement.num_at_once

    assert at(12, (16, 1)) == (0.125, 8)
    assert at(3, (16, 1)) == (0.3333, 3)
    assert at(4, (16, 4)) == (1.0, 4)
    assert at(12, (4, 1)) == (0.25, 4)  # each takes a CPU
    assert at(12, (4, 1), cpus_per_worker=3) == (1.0, 1)
    assert at(12, (16, 1), gpus_per_worker=1) == (1.0, 1)
    assert at(12, (16, 2), num_workers=2) == (1.0, 1)


def test_workers_of_a_trial_share_what_drivers_leave_them() -> None:
    placement = place(ResourcesConfig(num_workers=2), cluster((4, 0)), num_trials=9)
    assert (placement.launcher, placement.cpus, placement.num_at_once) == ("train", 1, 2)
    assert (
        place(ResourcesConfig(launcher="train"), cluster((4, 0)), num_trials=1).launcher == "train"
    )


def test_a_trial_that_takes_what_is_free_starts_where_its_least_fits_and_counts_by_its_most() -> (
    None
):
    few = place(
        ResourcesConfig(num_workers=(2, 8), cpus_per_worker=1), cluster((4, 0)), num_trials=2
    )
    assert (few.launcher, few.num_workers, few.num_at_once) == ("train", (2, 8), 1)
    many = place(
        ResourcesConfig(num_workers=(1, 2), cpus_per_worker=1), cluster((4, 0)), num_trials=2
    )
    assert many.num_at_once == 2
    with pytest.raises(ConfigError, match=r"requires 2 worker\(s\) of 3 CPU"):
        place(ResourcesConfig(num_workers=(2, 8), cpus_per_worker=3), cluster((4, 0)), num_trials=1)


@pytest.mark.parametrize(
    ("resources", "sentence"),
    [
        (
            ResourcesConfig(num_workers=3, cpus_per_worker=2),
            "3 worker(s) of 2 CPU(s), which this cluster does not have",
        ),
        (ResourcesConfig(cpus_per_worker=5), "a node with 4 CPU(s) and 0 GPU(s)"),
        (ResourcesConfig(gpus_per_worker=1), "1 GPU(s)"),
    ],
)
def test_what_can_never_be_scheduled_says_so(resources: ResourcesConfig, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        place(resources, cluster((4, 0)), num_trials=1)
    assert sentence in str(error.value)
