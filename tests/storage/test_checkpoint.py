import json
from importlib import metadata
from pathlib import Path

import pytest

import medray
from medray.errors import ArtifactError
from medray.storage import checkpoint
from medray.storage.checkpoint import BaseRecord, Manifest, PrecisionRecord, Probe, TaskRecord

MANIFEST = Manifest(
    task=TaskRecord(options={"name": "classification"}, state={"labels": ["a", "b"]}),
    base=BaseRecord(source="folder", revision=None, weight_hash="00", family="bert"),
    trial={},
    data_fingerprint="d",
    split_fingerprint="s",
    cursor={"epoch": 1, "step": 3},
    metrics={"f1_macro": 0.5},
    precision=PrecisionRecord(actual="fp32", setting="auto"),
    seed=0,
    versions=checkpoint.versions(),
    git_commit=None,
    probe=Probe(texts=("x",), outputs=((0.0, 1.0),)),
)


def fill(folder: Path) -> None:
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")


def test_a_checkpoint_reads_back_as_it_was_written_with_the_hash_of_every_file(
    tmp_path: Path,
) -> None:
    manifest = checkpoint.save(tmp_path / "one", fill, MANIFEST)
    assert checkpoint.verify(tmp_path / "one") == manifest
    assert set(manifest.files) == {"adapter_model.safetensors", "tokenizer/vocab.txt"}


def test_a_source_tree_that_is_not_installed_has_a_version_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    checkpoint.versions.cache_clear()
    try:
        assert checkpoint.versions()["medray"] == medray.__version__
    finally:
        checkpoint.versions.cache_clear()


def test_the_manifest_is_written_after_every_other_file(tmp_path: Path) -> None:
    listings: list[list[str]] = []

    def watching(folder: Path) -> None:
        fill(folder)
        listings.append(sorted(path.name for path in folder.iterdir()))

    checkpoint.save(tmp_path / "one", watching, MANIFEST)
    assert listings == [["adapter_model.safetensors", "tokenizer"]]


def test_an_interrupted_save_leaves_no_checkpoint(tmp_path: Path) -> None:
    def failing(folder: Path) -> None:
        fill(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path / "one", failing, MANIFEST)
    with pytest.raises(
        ArtifactError, match=r"is not a checkpoint, because it has no manifest\.json"
    ):
        checkpoint.read(tmp_path / "one")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"weightz"),
            r"adapter_model\.safetensors was changed",
        ),
        (
            lambda folder: (folder / "tokenizer" / "vocab.txt").unlink(),
            r"tokenizer/vocab\.txt is missing",
        ),
        (
            lambda folder: (folder / "extra.bin").write_bytes(b""),
            r"extra\.bin is not in the manifest",
        ),
    ],
)
def test_a_changed_missing_or_added_file_is_named(tmp_path: Path, change, message) -> None:
    checkpoint.save(tmp_path / "one", fill, MANIFEST)
    change(tmp_path / "one")
    with pytest.raises(ArtifactError, match=message):
        checkpoint.verify(tmp_path / "one")


def test_a_manifest_of_another_schema_says_so(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "one", fill, MANIFEST)
    path = tmp_path / "one" / checkpoint.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(ArtifactError, match="schema version 99"):
        checkpoint.read(tmp_path / "one")
    path.write_text("{")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        checkpoint.read(tmp_path / "one")
