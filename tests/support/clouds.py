"""Servers of Google Cloud Storage and Azure on loopback, with the operations that releases need."""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

_DATE = "Mon, 30 Nov 2026 07:00:00 GMT"
_MARKS = ("x-goog-meta-", "x-ms-meta-")


def _key(path: str) -> str:
    return unquote(urlsplit(path).path).partition("/")[2].partition("/")[2]


@dataclass(frozen=True)
class _Blob:
    content: bytes
    headers: dict[str, str]


class _Handler(BaseHTTPRequestHandler):
    """Serves `/bucket/key` with the conditions, metadata and listings of both services."""

    protocol_version = "HTTP/1.1"
    blobs: dict[str, _Blob]
    lock: threading.Lock

    def log_message(self, format: str, *args: Any) -> None:
        pass

    @property
    def key(self) -> str:
        return _key(self.path)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        marks = {
            name: value for name, value in self.headers.items() if name.lower().startswith(_MARKS)
        }
        create = (
            self.headers.get("x-goog-if-generation-match") == "0"
            or self.headers.get("if-none-match") == "*"
        )
        with self.lock:
            if create and self.key in self.blobs:
                return self._answer(412, b"<Error><Code>ConditionNotMet</Code></Error>")
            self.blobs[self.key] = _Blob(content, marks)
        return self._answer(201)

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query or query.get("comp") == ["list"]:
            prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
            return self._answer(200, self._listing(prefix, delimiter, azure="comp" in query))
        blob = self.blobs.get(self.key)
        if blob is None:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        return self._answer(200, blob.content, blob.headers)

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        with self.lock:
            self._answer(202 if self.blobs.pop(self.key, None) else 404)

    def do_POST(self) -> None:
        """Answer Azure's batch of deletions."""
        batch = self.rfile.read(int(self.headers["content-length"])).decode()
        parts = []
        for number, path in enumerate(re.findall(r"DELETE (\S+) HTTP", batch)):
            with self.lock:
                status = "202 Accepted" if self.blobs.pop(_key(path), None) else "404 Not Found"
            parts.append(
                f"--b\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\nHTTP/1.1 "
                f"{status}\r\n\r\n\r\n"
            )
        self._answer(
            202,
            "".join([*parts, "--b--\r\n"]).encode(),
            {"Content-Type": "multipart/mixed; boundary=b"},
        )

    def _listing(self, prefix: str, delimiter: str, *, azure: bool) -> bytes:
        keys = sorted(key for key in self.blobs if key.startswith(prefix))
        below = {
            key: key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            for key in keys
        }
        folders = sorted({f"{prefix}{name}/" for name, mark, _ in below.values() if mark})
        objects = [(key, len(self.blobs[key].content)) for key in keys if not below[key][1]]
        if azure:
            blobs = "".join(
                f"<Blob><Name>{escape(key)}</Name><Properties><Last-Modified>{_DATE}</Last-Modified><Etag>e</Etag>"
                f"<Content-Length>{size}</Content-Length><Content-Type>x</Content-Type></Properties></Blob>"
                for key, size in objects
            )
            prefixes = "".join(
                f"<BlobPrefix><Name>{escape(folder)}</Name></BlobPrefix>" for folder in folders
            )
            return (
                f"<EnumerationResults><Blobs>{blobs}{prefixes}</Blobs><NextMarker/>"
                "</EnumerationResults>"
            ).encode()
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size><ETag>e</ETag>"
            f"<LastModified>2026-11-30T07:00:00Z</LastModified></Contents>"
            for key, size in objects
        )
        prefixes = "".join(
            f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
            for folder in folders
        )
        return f"<ListBucketResult>{contents}{prefixes}</ListBucketResult>".encode()

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {
            "ETag": "e",
            "Last-Modified": _DATE,
            "x-goog-generation": "1",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture(params=["gs", "az"])
def cloud_uri(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> Iterator[str]:
    """The URI of a folder in a new bucket."""
    handler = type("Handler", (_Handler,), {"blobs": {}, "lock": threading.Lock()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    settings = {
        "gs": {"GOOGLE_BASE_URL": endpoint, "GOOGLE_BEARER_TOKEN": "token"},
        "az": {
            "AZURE_STORAGE_ENDPOINT": endpoint,
            "AZURE_STORAGE_ACCOUNT_NAME": "account",
            "AZURE_SKIP_SIGNATURE": "true",
        },
    }
    for name, value in settings[request.param].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MEDRAY_CACHE", str(tmp_path / "cache"))
    yield f"{request.param}://bucket/some/place"
    server.shutdown()
    server.server_close()
    thread.join()
