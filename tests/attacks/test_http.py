"""Hostile requests against the routes, and against the process that reads them first."""

from pathlib import Path

import pretend
import pytest
from starlette.testclient import TestClient

from medray.errors import ConfigError
from medray.serving import keys
from medray.serving.api import make_api
from medray.serving.schemas import Limits

CANARY = "Zebediah-Q-Canary-4711"
POST = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
MB = b"a" * (1 << 20)


def http(digests: frozenset[str] | None = None, host: str = "testserver") -> TestClient:
    api = make_api(pretend.Service("cancer@best"), Limits(), digests)
    return TestClient(api, base_url=f"http://{host}", raise_server_exceptions=False)


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
