"""The number of files that one request passes."""

import pytest
from support.request_trace import REQUESTS, files_of_request

from medray.serving.schemas import CHAT_PATH, DECISIONS_PATH

MOST = {"/v1/classify": 12, DECISIONS_PATH: 15, CHAT_PATH: 19}
MOST_OF_SERVING = {"/v1/classify": 6, DECISIONS_PATH: 8, CHAT_PATH: 9}


@pytest.mark.parametrize("path", list(REQUESTS))
def test_a_request_passes_few_files(path: str) -> None:
    names = files_of_request(path)
    assert {
        "serving/front.py",
        "serving/ingress.py",
        "serving/replica.py",
        "engines/transformers.py",
    } <= set(names)
    assert len(names) <= MOST[path], names
    assert "serving/remote_calls.py" not in names
    assert sum(name.startswith("serving/") for name in names) <= MOST_OF_SERVING[path], names


def test_a_request_to_another_deployment_passes_one_file_more() -> None:
    path = "/v1/classify"
    names = files_of_request(path, is_remote=True)
    assert "serving/remote_calls.py" in names
    assert len(names) <= MOST[path] + 1, names
