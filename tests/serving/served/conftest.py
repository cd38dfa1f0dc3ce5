from collections.abc import Iterator

import pytest
from session import Served, serving

from medray.runtime import Cluster


@pytest.fixture(scope="module")
def served(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One session for the tests of a file that ask over HTTP; its replicas hold CPUs, which the tests after it need."""
    with serving(tmp_path_factory.mktemp("served")) as session:
        yield session
