import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from medray.errors import ArtifactError, ConfigError
from medray.storage import files


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    files.write(path, b"old")
    files.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


def test_of_many_writers_that_create_one_file_exactly_one_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "1.json"
    with ThreadPoolExecutor(8) as pool:
        wins = list(pool.map(lambda number: files.create(path, str(number).encode()), range(32)))
    assert wins.count(True) == 1
    assert path.read_bytes() == str(wins.index(True)).encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["1.json"]


def test_a_folder_appears_only_when_it_was_filled_without_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="half way"):
        with files.new_folder(tmp_path / "target") as folder:
            (folder / "first").write_text("x")
            raise RuntimeError("half way")
    assert list(tmp_path.iterdir()) == []
    with files.new_folder(tmp_path / "target") as folder:
        (folder / "first").write_text("x")
    assert [path.relative_to(tmp_path).as_posix() for path in files.files(tmp_path)] == [
        "target/first"
    ]


def test_a_folder_that_another_process_finished_first_is_kept(tmp_path: Path) -> None:
    with files.new_folder(tmp_path / "target") as folder:
        (folder / "mine").write_text("x")
        (tmp_path / "target").mkdir()
        (tmp_path / "target" / "theirs").write_text("y")
    assert [path.name for path in files.files(tmp_path)] == ["theirs"]


def test_hashes_tell_apart_texts_that_join_to_the_same_string() -> None:
    assert files.hash_text(["ab", "c"]) != files.hash_text(["a", "bc"])
    assert files.hash_text(["a", "b"]) == files.hash_text(iter(["a", "b"]))


def test_a_folder_and_a_file_are_fetched_from_a_uri_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDRAY_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file.txt").write_text("text")
    copy = files.fetch(f"file://{source}")
    assert copy.is_relative_to(tmp_path / "cache")
    assert files.hash_folder(copy) == files.hash_folder(source)
    assert files.fetch(f"file://{source}/inner/file.txt").read_text() == "text"
    assert files.fetch(f"file://{source}") == copy
    assert files.fetch(str(source)) == source
    with pytest.raises(ArtifactError, match="no such file or folder"):
        files.fetch(f"file://{source}/missing")


def test_a_large_file_is_hashed_once_and_again_after_any_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDRAY_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.safetensors"
    reads = []
    hash_file = files.hash_file
    monkeypatch.setattr(files, "hash_file", lambda path: reads.append(path) or hash_file(path))

    def check(num_reads: int) -> None:
        reads.clear()
        for _ in range(2):
            assert files.hash_once(path) == hashlib.sha256(path.read_bytes()).hexdigest()
        assert len(reads) == num_reads

    path.write_bytes(b"first")
    check(2)  # it changed a moment ago, so another write may get the same time
    now = time.time
    monkeypatch.setattr(files.time, "time", lambda: now() + 3)
    check(1)
    check(0)
    before = path.stat()
    path.write_bytes(b"other")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    check(1)  # same size and same time of writing, but not the same time of change
    (replacement := tmp_path / "replacement").write_bytes(b"third")
    replacement.rename(path)
    check(1)
    (entry,) = (tmp_path / "cache" / "hashes").iterdir()
    entry.write_text("[]")
    check(1)  # an entry that cannot be read is no error
    (tmp_path / "link").symlink_to(path)
    assert files.hash_once(tmp_path / "link") == files.hash_once(path)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (None, "here: is of type NoneType; give a path"),
        (b"x", "here: is of type bytes; give a path"),
        ("a\0b", "here: 'a.x00b' has a character that no path has"),
        ("\ud800", "has a character that no path has"),
    ],
)
def test_what_is_no_path_is_named(place: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        files.check_place(place, "here")


def test_a_path_is_given_as_text_or_as_an_object() -> None:
    assert files.check_place("s3://bucket/x", "here") == "s3://bucket/x"
    assert files.check_place(Path("/a/b"), "here") == "/a/b"


def test_a_place_where_nothing_can_be_made_is_named(tmp_path: Path) -> None:
    for path in (Path("/proc/x/y"), tmp_path):
        with pytest.raises(ArtifactError, match=f"{path}: cannot be written: .*; choose a place"):
            files.write(path, b"x")
