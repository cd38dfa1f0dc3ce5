"""Hostile requests against the routes, and against the process that reads them first."""

import re
from pathlib import Path
from typing import Any

import pretend
import pytest
from pydantic import BaseModel, ValidationError
from starlette.testclient import TestClient

from medray.errors import ConfigError
from medray.serving import keys
from medray.serving.api import make_api
from medray.serving.completions import ChatRequest
from medray.serving.schemas import ClassifyRequest, Limits

CANARY = "Zebediah-Q-Canary-4711"
POST = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
MB = b"a" * (1 << 20)


def http(digests: frozenset[str] | None = None, host: str = "testserver") -> TestClient:
    api = make_api(pretend.Service("cancer@best"), Limits(), digests)
    return TestClient(api, base_url=f"http://{host}", raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (ClassifyRequest, {"inputs": [1] * 100_000}),
        (ClassifyRequest, {"inputs": [{}] * 100_000}),
        (ClassifyRequest, {f"k{number}": 1 for number in range(80_000)}),
        (ChatRequest, {"messages": [1] * 100_000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [1] * 100_000}]}),
        (ChatRequest, {"messages": [{"role": "user", "content": "a"}], "stop": [1] * 100_000}),
    ],
)
def test_the_first_wrong_of_many_inputs_ends_the_validation(model: type[BaseModel], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    assert caught.value.error_count() < 5


def test_a_wrong_input_is_named_once() -> None:
    answer = http().post("/v1/classify", json={"inputs": [1, 2, 3]})
    assert answer.json()["error"]["message"] == "inputs.0: Input should be a valid string"
    empty = http().post("/v1/classify", json={"inputs": []})
    assert "at least 1" in empty.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"text": "a", "model": CANARY},
        {"text": "a", CANARY: 1},
        {"text": "a", "x" * 100_000: 1},
        {"text": "a", "model": CANARY * 40_000},
        {CANARY: {CANARY: 1}},
    ],
)
@pytest.mark.parametrize("path", ["/v1/classify", "/v1/choose", "/v1/chat/completions"])
def test_an_error_repeats_no_model_and_no_strange_key(path: str, body: dict[str, Any]) -> None:
    answer = http().post(path, json=body)
    assert answer.status_code >= 400
    assert "Canary" not in answer.text
    assert len(answer.content) < 1000


def test_an_error_of_a_models_page_does_not_repeat_its_name() -> None:
    answer = http().get(f"/v1/models/{CANARY}")
    assert (answer.status_code, "Canary" in answer.text) == (404, False)
    assert "allowed: cancer@best" in answer.text


def test_the_documentation_loads_nothing_and_runs_no_script() -> None:
    answer = http().get("/docs")
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<script" not in answer.text
    assert not re.search(r"(?:https?:)?//", answer.text)
    for part in ("POST /v1/classify", "POST /v1/chat/completions", 'id="ClassifyRequest"', "the release that answers"):
        assert part in answer.text
    assert set(re.findall(r'href="#(.*?)"', answer.text)) <= set(re.findall(r'id="(.*?)"', answer.text))
    for path in ("/redoc", "/docs/oauth2-redirect"):
        assert http().get(path).status_code == 404


# Tokens.


@pytest.mark.parametrize("nothing", ["", "\n"])
def test_the_digest_of_a_variable_that_is_not_set_is_no_token(tmp_path: Path, nothing: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"{keys.digest('right')}\n{keys.digest(nothing)}\n")
    with pytest.raises(ConfigError, match="tokens:2: is the SHA-256 of an empty token"):
        keys.read(path)


def test_no_token_is_admitted_by_no_digest() -> None:
    digests = frozenset({keys.digest("")})
    assert not keys.admits(digests, "")
    for headers in ({}, {"x-api-key": ""}, {"authorization": "Bearer "}, {"authorization": "Bearer"}):
        assert http(digests=digests).get("/v1/models", headers=headers).status_code == 401


def test_a_tokens_file_that_everybody_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(keys.digest("right") + "\n")
    path.chmod(0o646)
    with pytest.raises(ConfigError, match="every user of this machine may add a token"):
        keys.read(path)
    path.chmod(0o664)
    assert keys.admits(keys.read(path), "right")
