from collections.abc import Iterator

import pytest
from support.serve_session import Served, serving

from medray.runtime.cluster import Cluster


@pytest.fixture(scope="package")
def served(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One session for the tests of this folder; its replicas hold CPUs, which the tests after it
    need."""
    with serving(tmp_path_factory.mktemp("served")) as session:
        yield session
