import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that need it skip, and say so, where it is not there."""
    folder = os.environ.get("MEDRAY_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MEDRAY_TEST_DATA names no folder of real data")
    return Path(folder)
