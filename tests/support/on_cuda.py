"""A pytest plugin that runs every test on the CUDA device in name.

`PYTHONPATH=tests pytest -p support.on_cuda tests/training/test_trial.py`"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from support import cuda_library

if TYPE_CHECKING:
    from support.pretend_cuda import Device


def pytest_load_initial_conftests() -> None:
    cuda_library.load()  # conftest.py imports torch


@pytest.fixture(autouse=True)
def gpu() -> "Iterator[Device]":
    from support.pretend_cuda import pretend

    with pretend() as device:
        yield device
