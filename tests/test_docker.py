"""Build the image where there is a Docker daemon; otherwise skip with a reason."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def docker(*arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout_s
    )


@pytest.fixture
def image() -> Iterator[str]:
    try:
        has_daemon = docker("info", timeout_s=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        has_daemon = False
    if not has_daemon:
        pytest.skip("no Docker daemon answers: cluster/Dockerfile is not built here")
    name = f"medray-test-{os.getpid()}"
    process = docker("build", "-f", "cluster/Dockerfile", "-t", name, ".", timeout_s=3000)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    yield name
    docker("image", "rm", "--force", name, timeout_s=120)


def test_the_image_builds_and_refuses_to_serve_without_tokens(image: str) -> None:
    names = docker(
        "run", "--rm", image, "medray", "releases", "--storage-path", "/releases", timeout_s=300
    )
    assert names.returncode == 0, names.stderr
    refusal = docker("run", "--rm", "-e", "MEDRAY_RELEASES=cancer@best", image, timeout_s=300)
    assert refusal.returncode != 0
    assert "MEDRAY_TOKENS_SHA256" in refusal.stdout + refusal.stderr
