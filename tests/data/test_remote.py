"""Remote data is copied once, and again if it has changed."""

import errno
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
from support.s3 import endpoint, uri  # noqa: F401

from medray.config.schema import PluginOptions
from medray.config.trial import DataConfig
from medray.data import dataset, remote
from medray.data.formats.base import protocol
from medray.data.meter import Meter
from medray.errors import DataError

ROWS = "id,text,label\n" + "".join(
    f"r{n},text number {n} of many,{'ab'[n % 2]}\n" for n in range(40)
)


def options(path: str) -> PluginOptions:
    return DataConfig.model_validate(
        {"format": {"name": "delimited", "path": path, "id": "id"}}
    ).format


class Site(http.server.BaseHTTPRequestHandler):
    body, tag, num_requests = ROWS.encode(), '"one"', 0
    length: int | None = None

    def do_GET(self) -> None:
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        Site.num_requests += 1
        self.send_response(200)
        if Site.tag:
            self.send_header("ETag", Site.tag)
        self.send_header("Content-Length", str(Site.length or len(Site.body)))
        self.end_headers()
        self.wfile.write(Site.body)

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("MEDRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name, value in (("body", ROWS.encode()), ("tag", '"one"'), ("length", None)):
        monkeypatch.setattr(Site, name, value)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/some/rows.csv"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_of_a_site_trains_as_one_of_this_machine_does(site: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(ROWS)
    here, there = (
        dataset.load(DataConfig(format=options(place)))
        for place in (str(tmp_path / "rows.csv"), f"{site}?token=secret")
    )
    assert (there.fingerprint, there.split_fingerprint) == (
        here.fingerprint,
        here.split_fingerprint,
    )
    assert protocol.check(options(site)) == []


def test_what_a_site_says_is_the_same_is_not_written_again(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = remote.pull(site)
    mtime = first.stat().st_mtime_ns
    assert (remote.pull(site), first.stat().st_mtime_ns, first.name) == (first, mtime, "rows.csv")
    monkeypatch.setattr(Site, "body", b"id,text,label\n")
    monkeypatch.setattr(Site, "tag", '"two"')
    assert remote.pull(site).read_bytes() == b"id,text,label\n"
    monkeypatch.setattr(Site, "tag", "")
    monkeypatch.setattr(Site, "body", b"id,text,lobel\n")
    remote.pull(site)
    monkeypatch.setattr(Site, "body", b"id,text,lebel\n")
    assert (
        remote.pull(site).read_bytes() == b"id,text,lebel\n"
    )  # of the same length, and nothing says when it was made


def test_half_a_file_and_none_are_errors_and_leave_nothing(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert protocol.check(options(site.replace("/some", "/missing"))) == [
        f"data.format: {site.replace('/some', '/missing')}: the server answered 404 Not Found"
    ]
    with pytest.raises(DataError, match="names no file"):
        remote.pull(site.rpartition("/some")[0] + "/")
    monkeypatch.setattr(Site, "length", len(ROWS) + 10)
    with pytest.raises(DataError, match=r"rows\.csv: (ended after|cannot be read)"):
        remote.pull(f"{site}?token=secret")
    assert not list((tmp_path / "cache" / "pulled").glob("*/rows.csv"))


def test_an_address_in_a_message_has_no_signature(site: str) -> None:
    with pytest.raises(DataError) as info:
        remote.pull(site.replace("/some", "/missing") + "?token=secret")
    assert "secret" not in str(info.value)


def test_a_folder_of_a_bucket_is_pulled_once_and_again_when_a_file_is_added(
    uri: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    system, root = pyarrow.fs.FileSystem.from_uri(uri)
    for name in ("cancer/1.txt", "other/2.txt"):
        with system.open_output_stream(f"{root}/{name}") as file:
            file.write(f"<ID:{name[-5]}>\nTitle: A title\nAbstract: of {name}\n".encode())
    raw = DataConfig.model_validate({"format": {"name": "raw_abstracts", "path": uri}}).format
    assert sorted((row.id, row.labels) for row in protocol.read(raw)) == [
        ("1", ("cancer",)),
        ("2", ("other",)),
    ]
    place = remote.pull(uri)
    mtime = (place / "cancer/1.txt").stat().st_mtime_ns
    assert (remote.pull(f"{uri}/") / "cancer/1.txt").stat().st_mtime_ns == mtime
    with system.open_output_stream(f"{root}/other/3.txt") as file:
        file.write(b"<ID:3>\nTitle: Third\nAbstract: text\n")
    assert len(list(protocol.read(raw))) == 3
    with pytest.raises(DataError, match="there is no such file or folder, or the folder is empty"):
        remote.pull(f"{uri}/nothing")


def test_a_bucket_that_cannot_be_reached_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEDRAY_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"^abfs://none: cannot be opened: "):
        remote.pull("abfs://none")


def test_no_secret_of_an_address_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (
        "https://user:secret@127.0.0.1:1/rows.csv?key=secret",
        "s3://KEY:secret@no-bucket/rows.csv?endpoint_override=127.0.0.1:1",
    ):
        with pytest.raises(DataError, match=r"rows\.csv: cannot be") as info:
            remote.pull(address)
        assert "secret" not in str(info.value)


def test_a_full_disk_is_not_reported_as_unreadable_data(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "cache")

    monkeypatch.setattr(Meter, "add", full)
    with pytest.raises(OSError, match="No space left") as info:
        remote.pull(site)
    assert not isinstance(info.value, DataError)
