import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from bucket import endpoint, uri  # noqa: F401  (fixtures)

from medray.runtime import Cluster, start_cluster


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that need it skip, and say so, where it is not there."""
    folder = os.environ.get("MEDRAY_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MEDRAY_TEST_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One Ray for the whole run; it counts more CPUs than there may be."""
    with start_cluster("single", num_cpus=8) as started:
        yield started
