"""Damaged and manipulated stores, and processes that are killed while they write.
docs/guides/security.md."""

import errno
import json
import logging
import os
import signal
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import pytest
from support import s3, tiny

from medray.cli import main
from medray.errors import ArtifactError, ConfigError, MedrayError, UnreachableError
from medray.records import CalibrationRecord, Move, TestRecord
from medray.registry import repair
from medray.registry.registry import Registry
from medray.registry.release import Release
from medray.serving import promotion
from medray.serving.follow import Follower
from medray.storage import checkpoint, files
from medray.storage.object_store import ObjectStore
from medray.storage.store import LocalStore

BROKEN_FILES = {
    "empty": b"",
    "half": b'{"schema_version":1,',
    "array": b"[]",
    "deep": b"[" * 100_000,
    "binary": bytes(range(256)),
    "long number": b'{"schema_version": 1, "version":' + b"9" * 5000 + b"}",
    "utf-16": '{"a":1}'.encode("utf-16"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cancer@1, which is cancer@best and cancer@next, and other@1, which is other@best."""
    root = tmp_path_factory.mktemp("whole")
    registry = Registry(str(root))
    for name in ("cancer", "other"):
        registry.publish(tiny.checkpoint(), name)
        registry.point(name, "best", 1)
    registry.point("cancer", "next", 1)
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A store of a test's own."""
    return Path(copytree(whole, tmp_path / "store"))


def files_of(root: Path) -> Path:
    (folder,) = (root / "checkpoints").iterdir()
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def rehash(root: Path, name: str = "cancer") -> None:
    """Attack with write access: write a manifest with the hashes of changed files, and a record
    that names it."""
    folder = files_of(root)
    edit(
        folder / checkpoint.MANIFEST,
        files=files.hash_folder(folder, leave_out=[checkpoint.MANIFEST]),
    )
    content_id = checkpoint.content_id(folder)
    folder.rename(folder.with_name(content_id))
    edit(root / "releases" / name / "1.json", content_id=content_id)


def swap_labels(root: Path) -> None:
    path = files_of(root) / checkpoint.MANIFEST
    task = json.loads(path.read_bytes())["task"]
    task["state"]["labels"].reverse()
    edit(path, task=task)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """A command's exit status, output and errors; an exception is a failure of the test."""
    status = main([str(argument) for argument in arguments])
    logging.basicConfig(
        handlers=[logging.NullHandler()], force=True
    )  # the stream that is captured here is closed later
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    return status, output.out, output.err


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"version": 99},
        {"content_id": "../releases"},
        {"content_id": "/etc"},
        {"task_options": {"max_length": 4}},
        {"task_options": {"evil": 1}},
        {"calibration": {"temperature": 1e-300}},
        {"calibration": {"temperature": 0.5}},
    ],
    ids=str,
)
def test_a_record_that_was_edited_loads_neither_by_its_alias_nor_by_its_version(
    root: Path, changes: dict[str, Any]
) -> None:
    edit(root / "releases" / "cancer" / "1.json", **changes)
    for reference in ("cancer@best", "cancer@1", "cancer"):
        with pytest.raises(MedrayError) as refusal:
            Registry(str(root)).resolve(reference).load()
        assert "\n" not in str(refusal.value)


def test_any_change_of_a_record_is_seen_through_its_alias_and_by_verify(root: Path) -> None:
    edit(root / "releases" / "cancer" / "1.json", notes="<img src=x onerror=alert(1)>")
    with pytest.raises(
        ArtifactError, match="the record of cancer@1 changed after the alias was pointed at it"
    ):
        Registry(str(root)).resolve("cancer@best")
    with pytest.raises(ArtifactError, match="the record of cancer@1 changed after"):
        Registry(str(root)).resolve("cancer@1").check_aliases()
    assert Registry(str(root)).resolve("other@best").check_aliases() == []
    promotion.promote(
        Registry(str(root)), "cancer@1", "best", None, timeout_s=1
    )  # whoever made the change says so
    Registry(str(root)).resolve("cancer@best").load()


def test_swapped_labels_are_refused_though_every_hash_was_rewritten(root: Path) -> None:
    swap_labels(root)
    rehash(root)
    for reference, message in (
        ("cancer@best", "record of cancer@1 changed"),
        ("cancer@1", "has labels other, cancer, and its record cancer, other"),
    ):
        with pytest.raises(ArtifactError, match=message):
            Registry(str(root)).resolve(reference).load()


def test_an_alias_whose_newest_move_is_broken_can_be_pointed_again(root: Path) -> None:
    (root / "releases" / "cancer" / "aliases" / "best" / "2.json").write_bytes(b"")
    promotion.promote(Registry(str(root)), "cancer@1", "best", None, timeout_s=1)
    assert Registry(str(root)).resolve("cancer@best").reference == "cancer@1"


def test_promotion_and_rollback_bind_no_record_that_was_changed_meanwhile(root: Path) -> None:
    registry = Registry(str(root))
    registry.publish(files_of(root), "cancer")
    registry.point("cancer", "best", 2)
    edit(root / "releases" / "cancer" / "1.json", notes="changed")
    with pytest.raises(ArtifactError, match="record of cancer@1 changed"):
        promotion.rollback(registry, "cancer", "best", None, timeout_s=1)
    assert tiny.aliases(registry, "cancer")["best"] == 2

    def open_labels(release: Any) -> str:
        if release.record.version == 2:
            raise ArtifactError("broken")
        return "model 1"

    with pytest.raises(
        ArtifactError, match="cancer@2 cannot be loaded"
    ):  # a new replica falls back to no changed record either
        Follower(registry, "cancer@best", open_labels, every_s=1, retry_s=1)


@pytest.mark.parametrize("content", BROKEN_FILES.values(), ids=BROKEN_FILES)
@pytest.mark.parametrize("where", ["releases/cancer/1.json", "releases/cancer/aliases/next/1.json"])
def test_a_broken_file_is_one_sentence_that_names_it_and_all_others_go_on(
    root: Path, capsys: pytest.CaptureFixture[str], where: str, content: bytes
) -> None:
    (root / where).write_bytes(content)
    with pytest.raises(
        ArtifactError, match=r"cancer.* cannot be read: .*; `medray verify --repair`"
    ) as refusal:
        Registry(str(root)).resolve("cancer@next")
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500
    status, out, err = run(capsys, "releases", "--storage-path", root)
    assert status == 4
    assert "other@1 @best" in out
    assert len(err.strip().splitlines()) == 1
    assert "cancer" in err
    if "aliases" in where:
        assert "cancer@1 @best" in out
        assert str(root / where) in err
        assert Registry(str(root)).resolve("cancer@best").reference == "cancer@1"
        assert "cannot be read" in str(Registry(str(root)).resolve("cancer@best").check_aliases())
    status, out, err = run(capsys, "verify", "--repair", "--storage-path", root)
    assert status == 1
    assert str(root / where) in out
    assert (root / where).read_bytes() == content


def test_an_old_version_and_an_old_move_that_cannot_be_read_block_no_command(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry(str(root))
    for version in (2, 3):
        registry.publish(tiny.checkpoint(), "cancer")
        registry.point("cancer", "best", version)
    registry.point("cancer", "best", 2)
    registry.point("cancer", "best", 3)
    for broken_path in ("1.json", "aliases/best/1.json"):
        (root / "releases" / "cancer" / broken_path).write_bytes(b"")
    newest = registry.find(
        "cancer", tiny.checkpoint(), CalibrationRecord()
    )  # as a study asks before it publishes its winner
    assert newest is not None
    assert newest.record.version == 2

    def open_release(release: Release) -> int:
        if release.record.version == 3:
            raise ValueError("cannot be loaded")
        return release.record.version

    assert Follower(registry, "cancer@best", open_release, every_s=1, retry_s=1).model == 2
    assert promotion.rollback(registry, "cancer", "best", None, timeout_s=1) == "cancer@2"
    assert "aliases/best/1.json: cannot be read: not valid JSON" in caplog.text
    assert "cancer@1: its record: cannot be read" in caplog.text


def test_a_rollback_from_a_move_that_cannot_be_read_does_not_go_one_too_far(root: Path) -> None:
    registry = Registry(str(root))
    for version in (2, 3):
        registry.publish(tiny.checkpoint(), "cancer")
        registry.point("cancer", "best", version)
    (root / "releases" / "cancer" / "aliases" / "best" / "3.json").write_bytes(b"")
    with pytest.raises(
        ArtifactError, match=r"aliases/best/3\.json: cannot be read: .*`medray verify --repair`"
    ):
        promotion.rollback(registry, "cancer", "best", None, timeout_s=1)


def test_a_rollback_does_not_go_on_while_the_store_does_not_answer(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(str(root))
    for version in (2, 3):
        registry.publish(tiny.checkpoint(), "cancer")
        registry.point("cancer", "best", version)
    read = LocalStore.read

    def unreachable(store: LocalStore, name: str) -> bytes:
        if name.endswith("aliases/best/2.json"):
            raise UnreachableError(f"{name}: cannot be read: Input/output error")
        return read(store, name)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "read", unreachable)
        with pytest.raises(UnreachableError, match="Input/output error"):
            promotion.rollback(registry, "cancer", "best", None, timeout_s=1)
    assert tiny.aliases(registry, "cancer")["best"] == 3
    assert promotion.rollback(registry, "cancer", "best", None, timeout_s=1) == "cancer@2"


@pytest.mark.parametrize("content", BROKEN_FILES.values(), ids=BROKEN_FILES)
def test_a_broken_manifest_that_its_record_vouches_for_is_one_sentence(
    root: Path, content: bytes
) -> None:
    folder = files_of(root)
    (folder / checkpoint.MANIFEST).write_bytes(content)
    content_id = files.hash_bytes(content)
    folder.rename(folder.with_name(content_id))
    edit(root / "releases" / "cancer" / "1.json", content_id=content_id)
    with pytest.raises(
        ArtifactError, match=r"manifest\.json: (cannot be read|schema version)"
    ) as refusal:
        Registry(str(root)).resolve("cancer@1").load()
    assert "\n" not in str(refusal.value)


def test_a_manifest_whose_task_or_model_cannot_be_restored_is_one_sentence(root: Path) -> None:
    for changes in (
        {"task": {"options": {"name": "classification"}, "state": {}}},
        {"task": {"options": {"evil": 1}, "state": {}}},
        {"trial": {}},
    ):
        edit(files_of(root) / checkpoint.MANIFEST, **changes)
        rehash(root)
        with pytest.raises(MedrayError, match=r"classification: the state|None|trial\.model"):
            Registry(str(root)).resolve("cancer@1").load()


def test_what_is_no_move_among_aliases_is_in_nobodys_way(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aliases = root / "releases" / "cancer" / "aliases"
    (aliases / "canary").mkdir()
    (aliases / "readme").write_text("x")
    (aliases / "best" / "٣.json").write_text("x")
    (aliases / "best" / "007.json").write_text("x")
    (root / "releases" / "readme").write_text("x")
    (root / "releases" / "cancer" / "notes.txt").write_text("x")
    assert tiny.aliases(Registry(str(root)), "cancer") == {"best": 1, "next": 1}
    status, out, _ = run(capsys, "releases", "--storage-path", root)
    assert status == 0
    assert "cancer@1 @best @next" in out
    with pytest.raises(ArtifactError, match="'cancer' has no alias 'canary'; allowed: best, next"):
        Registry(str(root)).resolve("cancer@canary")


def test_an_alias_is_pointed_after_a_gap_and_a_number_without_a_next_one_is_refused(
    root: Path,
) -> None:
    best, registry = root / "releases" / "cancer" / "aliases" / "best", Registry(str(root))
    (best / "1.json").rename(best / "3.json")
    registry.point("cancer", "best", 1)
    assert sorted(path.name for path in best.iterdir()) == ["3.json", "4.json"]
    assert [move.version for move in registry.history("cancer", "best")] == [1, 1]
    (best / "999999999.json").write_bytes((best / "4.json").read_bytes())
    with pytest.raises(ArtifactError, match=r"999999999\.json is the largest number"):
        registry.point("cancer", "best", 1)
    (root / "releases" / "cancer" / "999999999.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"999999999\.json is the largest number"):
        registry.publish(files_of(root), "cancer")


@pytest.mark.parametrize(
    "which",
    ["²", "٣", "9" * 5000, "a" * 300, "-1", ".", "../best", "1@2", "best ", "\n"],
    ids=lambda which: which[:8],
)
def test_a_reference_of_any_kind_is_one_short_sentence(root: Path, which: str) -> None:
    with pytest.raises(MedrayError) as refusal:
        Registry(str(root)).resolve(f"cancer@{which}")
    assert len(str(refusal.value)) < 500
    with pytest.raises(ConfigError, match="is not a name"):
        Registry(str(root)).resolve("../" + "x" * 5000)


def test_only_the_newest_move_is_read_to_resolve_an_alias(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = Move(version=1, time="x", by="y").model_dump_json()
    for number in range(2, 2001):
        (root / "releases" / "cancer" / "aliases" / "best" / f"{number}.json").write_text(move)
    reads: list[str] = []
    read = LocalStore.read
    monkeypatch.setattr(
        LocalStore, "read", lambda self, name: reads.append(name) or read(self, name)
    )
    Registry(str(root)).resolve("cancer@best")
    assert reads == ["releases/cancer/aliases/best/2000.json", "releases/cancer/1.json"]


def _link_to_the_same_bytes(path: Path) -> None:
    path.symlink_to(path.rename(path.parents[2] / "outside"))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _folder_elsewhere(path: Path) -> None:
    inside = path.with_name("tokenizer")
    inside.symlink_to(inside.rename(path.parents[2] / "outside"))


def _link_to_itself(path: Path) -> None:
    path.with_name("loop").symlink_to(".")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("file", ["adapter_model.safetensors", checkpoint.MANIFEST])
@pytest.mark.parametrize(
    "damage", [_link_to_the_same_bytes, _pipe, _endless, _folder_elsewhere, _link_to_itself]
)
def test_what_is_not_a_plain_file_is_refused_unread(
    root: Path, damage: Callable[[Path], None], file: str
) -> None:
    damage(files_of(root) / file)
    for attempt in (
        Registry(str(root)).resolve("cancer@best").verify,
        Registry(str(root)).resolve("cancer@best").load,
    ):
        with pytest.raises(
            ArtifactError, match=r"is a link|neither a file nor a folder|not a regular file"
        ):
            attempt()


@pytest.mark.timeout(60)
def test_a_file_larger_than_in_its_manifest_is_refused_unread(root: Path) -> None:
    os.truncate(
        files_of(root) / "adapter_model.safetensors", 1 << 40
    )  # sparse: it would be read for an hour
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors was changed"):
        Registry(str(root)).resolve("cancer@best").verify()
    os.truncate(root / "releases" / "cancer" / "1.json", 1 << 40)
    with pytest.raises(ArtifactError, match="bytes, and at most"):
        Registry(str(root)).resolve("cancer@best")


def _flip(folder: Path) -> None:
    content = bytearray((folder / "adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "adapter_model.safetensors").write_bytes(content)


def _lose(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def _link_out(folder: Path) -> None:
    _folder_elsewhere(folder / "any")


def _tell_lies(folder: Path) -> None:
    edit(folder / checkpoint.MANIFEST, seed=7)
    (folder / "more").mkdir()
    (folder / "more" / "file").write_text("x")


@pytest.mark.parametrize("damage", [_flip, _lose, _link_out, _tell_lies])
def test_a_copy_that_was_damaged_is_mended_when_the_same_checkpoint_is_published(
    root: Path, damage: Callable[[Path], None]
) -> None:
    damage(files_of(root))
    Registry(str(root)).publish(tiny.checkpoint(), "cancer").verify()
    Registry(str(root)).resolve("cancer@best").verify()
    outside = root / "checkpoints" / "outside"
    assert not outside.exists() or files.hash_folder(outside) == files.hash_folder(
        tiny.checkpoint() / "tokenizer"
    )


def test_several_repairs_of_one_copy_at_once_do_not_disturb_each_other(root: Path) -> None:
    store, name = LocalStore(str(root)), f"checkpoints/{files_of(root).name}"
    with ThreadPoolExecutor(4) as publishers:
        for _ in range(20):
            _tell_lies(files_of(root))
            _lose(files_of(root))
            for mending in [
                publishers.submit(store.put_folder, name, tiny.checkpoint()) for _ in range(4)
            ]:
                mending.result()
            assert files.hash_folder(files_of(root)) == files.hash_folder(tiny.checkpoint())


@pytest.mark.parametrize("at", ["mkstemp", "fsync", "link", "unlink"])
def test_a_kill_at_any_step_of_a_first_move_leaves_every_alias_readable(
    root: Path, at: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def die(*arguments: Any, **more: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        setattr(tempfile if at == "mkstemp" else Path if at == "unlink" else os, at, die)
        Registry(str(root)).point("cancer", "canary", 1)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    registry = Registry(str(root))
    assert (root / "releases" / "cancer" / "aliases" / "canary").is_dir()
    assert registry.resolve("cancer@best").reference == "cancer@1"
    assert run(capsys, "releases", "--storage-path", root)[0] == 0
    registry.point("cancer", "canary", 1)
    assert tiny.aliases(registry, "cancer") == {"best": 1, "canary": 1, "next": 1}


@pytest.mark.parametrize("reason", [errno.EROFS, errno.EACCES])
def test_a_store_that_cannot_be_written_is_one_sentence(
    root: Path,
    tmp_path: Path,
    reason: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*arguments: Any, **more: Any) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    commands: list[tuple[object, ...]] = [
        ("publish", files_of(root), "cancer"),
        ("promote", "cancer@1", "best", "--no-wait"),
        ("export", "cancer@best", tmp_path / "exported"),
    ]
    for command in commands:
        status, _, err = run(capsys, *command, "--storage-path", root)
        assert status == 1
        assert f"cannot be written: {os.strerror(reason)}; choose a place" in err
    assert run(capsys, "releases", "--storage-path", root)[0] == 0
    (root / "releases" / "cancer" / "aliases" / "best" / "2.json").write_text("{")
    monkeypatch.setattr(Path, "unlink", refuse)
    status, _, err = run(capsys, "verify", "--repair", "--yes", "--storage-path", root)
    assert status == 1
    assert f"2.json: cannot be written: {os.strerror(reason)}" in err


def test_a_version_that_could_not_be_read_again_is_not_published(root: Path) -> None:
    test = TestRecord(metrics={"f1_macro": float("nan")}, num_rows=1, num_openings=1)
    with pytest.raises(ArtifactError, match=r"its record: cannot be read: test\.metrics\.f1_macro"):
        Registry(str(root)).publish(tiny.checkpoint(), "cancer", test=test)
    assert Registry(str(root)).versions("cancer") == [1]


def test_a_stray_file_whose_name_is_not_utf8_is_reported(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkdir(os.fsencode(root / "releases") + b"/caf\xe9")
    status, output_text, _ = run(capsys, "verify", "--repair", "--storage-path", root)
    assert status == 0
    assert "releases/caf\\udce9: belongs to no release" in output_text


def test_a_file_where_a_folder_must_be_is_one_sentence(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (root / "releases" / "cancer" / "aliases" / "file").touch()
    for arguments in (
        ["publish", tiny.checkpoint(), "cancer", "--storage-path", tmp_path / "file"],
        ["promote", "cancer@1", "file", "--no-wait", "--storage-path", root],
        ["export", "cancer", tmp_path / "file" / "below", "--storage-path", root],
        ["export", "cancer", tmp_path / "link", "--storage-path", root],
    ):
        status, _, message = run(capsys, *arguments)
        assert status == 1
        assert "cannot be written: " in message


def test_what_another_process_takes_away_meanwhile_stops_no_look_at_a_store(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is while others publish, and mend a copy."""
    for place in (root / "releases" / "cancer" / ".1.json.x", files_of(root) / ".manifest.json.x"):
        place.touch()
    look = Path.lstat

    def raise_missing(self: Path) -> os.stat_result:
        if self.name.endswith(".x"):
            self.unlink(missing_ok=True)
        return look(self)

    monkeypatch.setattr(Path, "lstat", raise_missing)
    assert checkpoint.verify(files_of(root)) == checkpoint.read(files_of(root))
    assert list(repair.examine(Registry(str(root)))) == []


def test_a_store_of_an_earlier_version_loads_and_verify_reports_what_is_not_bound(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, move = (
        root / "releases" / "cancer" / "1.json",
        root / "releases" / "cancer" / "aliases" / "best" / "1.json",
    )
    record.write_text(
        json.dumps(
            {key: value for key, value in json.loads(record.read_bytes()).items() if key != "probe"}
        )
    )
    move.write_text('{"version":1,"time":"2026-01-01T00:00:00+00:00","by":"somebody"}')
    rmtree(root / "releases" / "cancer" / "aliases" / "next")
    status, out, _ = run(capsys, "verify", "cancer@best", "--storage-path", root)
    assert status == 0
    assert "note: cancer@best: an earlier version wrote it, without the digest of cancer@1" in out
    assert "note: cancer@1: an earlier version published it, without labels" in out
    Registry(str(root)).point("cancer", "best", 1)
    assert (
        "an earlier version wrote it"
        not in run(capsys, "verify", "cancer@best", "--storage-path", root)[1]
    )


def test_repair_lists_its_changes_and_makes_them_when_confirmed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDRAY_CACHE", str(tmp_path / "cache"))
    copytree(files_of(root), tmp_path / "cache" / "checkpoints" / files_of(root).name)
    aliases = root / "releases" / "cancer" / "aliases"
    (aliases / "next" / "2.json").write_text("{")
    (aliases / "canary").mkdir()
    (aliases / "best" / "1.json").rename(aliases / "best" / "3.json")
    half, move = root / "checkpoints" / ".half.a1b2_3c4", aliases / "best" / ".4.json.a1b2_3c4"
    for left in (half, move):
        left.mkdir() if left == half else left.write_text("x")
    for old in (aliases / "canary", half, move):
        os.utime(old, (0, 0))
    (folder,) = (path for path in (root / "checkpoints").iterdir() if not path.name.startswith("."))
    _flip(folder)
    before = files.hash_folder(root)
    status, out, _ = run(capsys, "verify", "--repair", "--storage-path", root)
    assert status == 1
    assert files.hash_folder(root) == before
    for line in (
        (
            f"{aliases}/next/2.json: cannot be read: .*; remove this move of cancer@next: it "
            "then points at cancer@1"
        ),
        f"{aliases}/canary: is left by a process that died; remove it",
        f"{move}: is left by a process that died; remove it",
        f"{half}: is left by a process that died; remove it",
        f"{aliases}/best: moves 1, 2 are missing; its history has a gap",
        (
            f"{folder}: differs from its manifest: adapter_model.safetensors was changed; copy it "
            f"from {tmp_path}/cache/checkpoints/{folder.name}"
        ),
        "nothing was changed; `medray verify --repair --yes` repairs what it can",
    ):
        start, _, end = line.partition(".*")
        assert any(
            (one.startswith(start) and one.endswith(end)) or one.startswith(line)
            for one in out.splitlines()
        ), line
    assert run(capsys, "verify", "--repair", "--yes", "--storage-path", root)[0] == 0
    status, out, _ = run(capsys, "verify", "--repair", "--storage-path", root)
    assert status == 0
    assert (
        out.strip()
        == f"{aliases}/best: moves 1, 2 are missing; its history has a gap, and everything works"
    )
    assert {path.name for path in aliases.iterdir()} == {"best", "next"}
    Registry(str(root)).resolve("cancer@next").verify()


def test_a_record_in_a_bucket_cannot_lead_outside_of_the_cache(uri: str, tmp_path: Path) -> None:
    registry = Registry(uri)
    store = registry.store
    assert isinstance(store, ObjectStore)
    content_id = registry.publish(tiny.checkpoint(), "cancer").record.content_id
    evil = f"../../../PLANTED/{content_id}"
    for name in ("manifest.json", "metrics.json"):
        s3.put(store, f"checkpoints/{evil}/{name}", store.read(f"checkpoints/{content_id}/{name}"))
    record = json.loads(store.read("releases/cancer/1.json")) | {"content_id": evil}
    s3.put(store, "releases/cancer/1.json", json.dumps(record).encode())
    with pytest.raises(ArtifactError, match="cancer@1: its record: cannot be read: content_id"):
        registry.resolve("cancer@1").folder()
    assert not list(tmp_path.rglob("PLANTED*"))


def test_a_bucket_is_mended_and_no_byte_above_its_manifest_is_fetched(
    uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry(uri)
    store = registry.store
    assert isinstance(store, ObjectStore)
    release = registry.publish(tiny.checkpoint(), "cancer")
    name = f"checkpoints/{release.record.content_id}"
    release.folder()  # a copy in the cache, which can mend it
    s3.put(store, f"{name}/metrics.json", b"x" * (1 << 20))
    registry.point("cancer", "best", 1)
    s3.put(store, "releases/cancer/aliases/best/2.json", b"{")
    addresses: list[str] = []
    fetch = store.fetch
    store.fetch = lambda key, path: addresses.append(key) or fetch(key, path)  # type: ignore[method-assign,func-returns-value]
    with pytest.raises(ArtifactError, match=r"metrics\.json was changed"):
        release.verify()
    assert addresses == []
    assert run(capsys, "releases", "--storage-path", uri)[0] == 4
    assert run(capsys, "verify", "--repair", "--storage-path", uri)[0] == 1
    assert run(capsys, "verify", "--repair", "--yes", "--storage-path", uri)[0] == 0
    Registry(uri).resolve("cancer@best").verify()


def _repair(capsys: pytest.CaptureFixture[str], where: Path | str) -> tuple[int, str]:
    status, out, _ = run(capsys, "verify", "--repair", "--yes", "--storage-path", where)
    return status, out


def test_repair_removes_no_move_that_only_could_not_be_read(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry(str(root))
    registry.publish(tiny.checkpoint(), "cancer")
    registry.point("cancer", "best", 2)
    place, real_open = root / "releases" / "cancer" / "aliases" / "best" / "2.json", os.open

    def refuse(path: Any, *arguments: Any, **more: Any) -> int:
        if path == place:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real_open(path, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        status, out = _repair(capsys, root)
    assert status == 1
    assert f"{place}: cannot be read: {os.strerror(errno.EIO)}; it may be complete" in out
    assert registry.resolve("cancer@best").reference == "cancer@2"
    edit(place, reason="what a later medray writes")
    status, out = _repair(capsys, root)
    assert status == 1
    assert (
        f"{place}: cannot be read: reason: Extra inputs are not permitted; it may be complete"
        in out
    )
    assert place.exists()


def test_repair_removes_no_move_that_a_bucket_does_not_give_now(
    uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry(uri)
    for version in (1, 2):
        registry.publish(tiny.checkpoint(), "cancer")
        registry.point("cancer", "best", version)

    def slow(request: Any, usual: s3.Answer) -> Any:
        return (
            s3.refusal(503, "SlowDown") if request.uri.endswith("best/2.json") else usual(request)
        )

    with monkeypatch.context() as patch:
        s3.instead(patch, "get_object", slow)
        status, out = _repair(capsys, uri)
    assert status == 1
    assert "it may be complete" in out
    assert registry.resolve("cancer@best").reference == "cancer@2"


def test_repair_removes_no_hidden_file_of_others(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [
        root / name
        for name in (
            "releases/.git/config",
            "releases/.gitattributes",
            "checkpoints/.snapshot/hourly",
            "releases/.DS_Store",
        )
    ]
    copying = root / "checkpoints" / ".half.a1b2_3c4" / "model.safetensors"
    for path in (*others, copying):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
        os.utime(path.parent if path.parent.name.startswith(".") else path, (0, 0))
    assert _repair(capsys, root) == (0, f"{root}: nothing is broken\n")
    assert all(path.exists() for path in (*others, copying))


def test_repair_removes_no_alias_that_was_pointed_while_it_looked(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    canary = root / "releases" / "cancer" / "aliases" / "canary"
    canary.mkdir()
    os.utime(canary, (0, 0))
    registry, verify = Registry(str(root)), checkpoint.verify

    def meanwhile(folder: Path, **more: Any) -> Any:
        registry.point("cancer", "canary", 1)
        return verify(folder, **more)

    monkeypatch.setattr(checkpoint, "verify", meanwhile)
    assert _repair(capsys, root)[0] == 0
    assert tiny.aliases(registry, "cancer")["canary"] == 1
