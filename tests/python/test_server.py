"""A service for the length of a block."""

from pathlib import Path
from typing import Any

import pytest
from support import tiny

import medray
from medray.errors import ConfigError, ServingError
from medray.registry.registry import Registry
from medray.runtime.cluster import Cluster, free_port


@pytest.mark.slow
@pytest.mark.ray
def test_a_block_serves_a_release_and_its_client_answers(tmp_path: Path, cluster: Cluster) -> None:
    Registry(str(tmp_path)).publish(tiny.checkpoint(), "cancer")
    port = free_port()
    with medray.serve("cancer", storage_path=str(tmp_path), port=port, precision="fp32") as client:
        reply = client.classify(["a carcinoma", "a fever"])
        expectation = medray.load("cancer", storage_path=str(tmp_path)).predict(
            ["a carcinoma", "a fever"]
        )
        assert [one.label for one in reply.predictions] == [one.labels[0] for one in expectation]
    with pytest.raises(ServingError):  # no route, or no proxy
        client.health()


def test_an_option_that_a_service_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"medray\.serve: precisions"):
        with medray.serve("cancer", storage_path=str(tmp_path), precisions="fp32"):
            pass


@pytest.mark.parametrize("port", [-1, 0, 70_000, "8000", None, 80.5])
def test_a_port_that_is_none_is_named(port: Any) -> None:
    with pytest.raises(ConfigError, match=r"medray\.serve: port .*: give a number from 1 to 65535"):
        with medray.serve("cancer", port=port):
            pass
