"""An S3 server on loopback."""

import os
import socket
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import pytest

from medray.storage import files
from medray.storage.object_store import ObjectStore

Answer = Callable[[Any], Any]  # called by moto with its request object

NO_CREDENTIALS = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_MAX_ATTEMPTS": "1",
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        put, lock = S3Response.put_object, Lock()

        def put_alone(self: S3Response) -> Any:
            with lock:
                return put(self)

        patch.setattr(S3Response, "put_object", put_alone)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
        server.stop()


@pytest.fixture
def uri(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a folder in a new bucket."""
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    for name, value in (NO_CREDENTIALS | settings).items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MEDRAY_CACHE", str(tmp_path / "cache"))
    bucket = f"test-{files.hash_text([str(tmp_path)])[:20]}"
    client().create_bucket(Bucket=bucket)
    return f"s3://{bucket}/some/place"


def client() -> Any:
    return _client(os.environ["AWS_ENDPOINT_URL"])


@cache
def _client(endpoint: str) -> Any:
    import boto3

    return boto3.session.Session().client(
        "s3", endpoint_url=endpoint, aws_access_key_id="key", aws_secret_access_key="secret"
    )


def put(store: ObjectStore, name: str, content: bytes) -> None:
    """Write an object as another writer would, without a condition."""
    client().put_object(Bucket=store.bucket.name, Key=store.bucket.prefix + name, Body=content)


def refusal(status: int, code: str) -> tuple[int, dict[str, str], str]:
    return status, {}, f"<Error><Code>{code}</Code><Message>no</Message></Error>"


def instead(
    patch: pytest.MonkeyPatch, operation: str, answer: Callable[[Any, Answer], Any]
) -> None:
    """Let a function answer an operation such as `put_object`. Its arguments are the request and
    the original function."""
    from moto.s3.responses import S3Response

    usual = getattr(S3Response, operation)
    patch.setattr(S3Response, operation, lambda request: answer(request, usual))


def hang_up(request: Any) -> Any:
    """Close the connection without an answer."""
    from flask import request as flask_request

    flask_request.environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    return 500, {}, ""
