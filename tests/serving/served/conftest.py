from collections.abc import Iterator

import pytest
from support.serve_session import Served, one_deployment, serving

from medray.runtime.cluster import Cluster


@pytest.fixture(scope="package")
def served(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One session for the tests of this folder; its replicas hold CPUs, which the tests after it
    need."""
    with serving(tmp_path_factory.mktemp("served")) as session:
        yield session


@pytest.fixture(scope="package")
def only_classifier(served: Served) -> Iterator[Served]:
    with one_deployment(served, "cancer@best", replicas=2) as session:
        yield session


@pytest.fixture(scope="package")
def only_talker(served: Served) -> Iterator[Served]:
    with one_deployment(served, "adviser@1") as session:
        yield session


@pytest.fixture(params=["served", "only_classifier"])
def either(request: pytest.FixtureRequest) -> Served:
    """An application of several deployments, or of one. Both follow one alias, so a test of the
    other may have moved it just before."""
    session: Served = request.getfixturevalue(request.param)
    assert session.run("promote", "cancer@1", "best") == 0
    return session
