"""S3 on loopback, for tests."""

from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import pytest

from medray.storage import files
from medray.storage.object_store import S3Store

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
    """A place in a bucket of its own."""
    settings = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, value in (NO_CREDENTIALS | settings).items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MEDRAY_CACHE", str(tmp_path / "cache"))
    bucket = f"test-{files.hash_text([str(tmp_path)])[:20]}"
    S3Store("s3://any")._client.create_bucket(Bucket=bucket)
    return f"s3://{bucket}/some/place"
