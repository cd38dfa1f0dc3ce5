"""Training and serving on a CUDA device in name, each in a process that has it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import cuda_library

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(bool(cuda_library.lacking()), reason=cuda_library.lacking())


def run(marks: str) -> None:
    """Run the cases that have these marks, and show the output of those that fail."""
    cases = [str(path) for path in sorted((ROOT / "tests" / "cuda").glob("*_cases.py"))]
    command = [sys.executable, "-m", "pytest", "-p", "support.on_cuda", "-m", marks, *cases]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    process = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout[-20_000:] + process.stderr[-2_000:]


def test_an_encoder_a_decoder_and_a_tied_model_work_on_a_cuda_device_in_name() -> None:
    run("not slow")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_other_family_works_on_a_cuda_device_in_name() -> None:
    run("slow")
