import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from support import scheduling, tiny
from support.browser import chromium  # noqa: F401  (a fixture)
from support.clouds import cloud_uri  # noqa: F401  (a fixture)
from support.costs import Costs
from support.s3 import endpoint, uri  # noqa: F401  (fixtures)
from support.time_budget import Budget

from medray.runtime.cluster import Cluster, start_cluster


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real data sets. Tests that need it skip with a reason where it is
    missing."""
    folder = os.environ.get("MEDRAY_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MEDRAY_TEST_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def _shared_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    tiny.share(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One Ray for the whole run; it counts more CPUs than there may be."""
    with start_cluster("single", num_cpus=4) as running:
        yield running


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--budget",
        type=float,
        default=0,
        metavar="SECONDS",
        help="run what fits, begin with another file each day",
    )
    parser.addoption(
        "--costs",
        type=int,
        default=0,
        metavar="N",
        help="show the N slowest phases of tests, with their seconds of CPU",
    )


def pytest_configure(config: pytest.Config) -> None:
    if seconds := config.getoption("--budget"):
        config.pluginmanager.register(Budget(seconds), "budget")
    if num_shown := config.getoption("--costs"):
        config.pluginmanager.register(Costs(num_shown), "costs")


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    scheduling.order(items)
    scheduling.mark_breadth(items)
    scheduling.mark_attacks(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return scheduling.RayTogether(config, log) if config.getoption("dist") == "loadfile" else None
