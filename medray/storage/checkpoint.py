"""A checkpoint is a folder with a manifest: what was trained, on what, how well, and the hash of
every file.

The manifest is written last and never changed: a folder without one is not a checkpoint.
"""

import platform
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from medray.config import environment
from medray.config.schema import Section, parse, validate
from medray.config.study import ModelConfig, Precision, TrainConfig
from medray.errors import ArtifactError
from medray.storage import files as storage

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1


class BaseRecord(Section):
    """Which frozen weights the adapter belongs to."""

    source: str
    revision: str | None
    weight_hash: str
    family: str
    note: str = ""


class TaskRecord(Section):
    options: dict[str, Any]
    state: dict[str, Any]  # label names, thresholds: what the task learned from the data


class PrecisionRecord(Section):
    """The precision of a training run, and why; `seconds` are the probe's times per step."""

    model_config = ConfigDict(
        serialize_by_alias=True, validate_by_name=True, validate_by_alias=True
    )

    actual: Precision = Field(alias="used")
    setting: str = Field(alias="asked")
    seconds: dict[str, float] = {}
    shape: tuple[int, int] | None = None


class Probe(Section):
    """Synthetic inputs and what this checkpoint answers to them in fp32: proof of identity after a
    load."""

    texts: tuple[str, ...]
    outputs: tuple[tuple[float, ...], ...]


class Manifest(Section):
    schema_version: Literal[1] = 1
    task: TaskRecord
    base: BaseRecord
    trial: dict[
        str, Any
    ]  # the resolved TrialConfig; of what was trained elsewhere, its model section
    is_untuned: bool = False  # the base as it is: there is no adapter
    data_fingerprint: str | None  # None where it was trained elsewhere
    split_fingerprint: str | None
    cursor: dict[str, int]  # epoch and step that this checkpoint was taken at
    metrics: dict[str, float]  # on the validation split
    precision: PrecisionRecord
    seed: int
    versions: dict[str, str]
    git_commit: str | None
    probe: Probe
    files: dict[str, str] = {}
    sizes: dict[
        str, int
    ] = {}  # bytes of each file, known before one is read; none in a manifest of an earlier medray

    @property
    def model(self) -> ModelConfig:
        return validate(
            ModelConfig, self.trial.get("model") or {}, where=f"{MANIFEST}: trial.model"
        )

    @property
    def token_budget(self) -> int:
        """Of the trial; of an import, which had none, a trial's default."""
        return int(
            self.trial.get("train", {}).get(
                "token_budget", TrainConfig.model_fields["token_budget"].default
            )
        )

    @property
    def quantization(self) -> str:
        return self.model.quantization


def save(folder: Path, fill: Callable[[Path], None], manifest: Manifest) -> Manifest:
    """Let `fill` write the files, hash what it wrote, and only then write the manifest."""
    with storage.new_folder(folder) as filling:
        fill(filling)
        complete = manifest.model_copy(
            update={"files": storage.hash_folder(filling), "sizes": storage.plain_sizes(filling)}
        )
        storage.write(filling / MANIFEST, complete.model_dump_json(indent=1).encode())
    return complete


def read(folder: Path) -> Manifest:
    return parse_manifest(_raw(folder), where=str(folder / MANIFEST))


def parse_manifest(raw: bytes, *, where: str) -> Manifest:
    return parse(Manifest, raw, where=where, version=SCHEMA_VERSION)


def content_id(folder: Path) -> str:
    """What names a whole checkpoint: the hash of its manifest, which holds the hash of every other
    file."""
    return storage.hash_bytes(_raw(folder))


def _raw(folder: Path) -> bytes:
    try:
        return storage.read_plain(folder / MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{folder}: not a checkpoint, it has no {MANIFEST}; put the checkpoint back, or "
            "publish it again"
        ) from None


def verify(folder: Path, *, expected_id: str | None = None) -> Manifest:
    """The manifest, after every file was compared with its hash, and the manifest with the content
    id that is expected.

    Names and sizes are compared first: nothing is read that the manifest does not bound.
    """
    raw = _raw(folder)
    manifest = check_manifest(raw, folder, expected_id)
    check_names(manifest, storage.plain_sizes(folder), folder)
    check_hashes(manifest, storage.hash_folder(folder, leave_out=[MANIFEST]), folder)
    return manifest


def check_manifest(raw: bytes, where: Path | str, expected_id: str | None) -> Manifest:
    """The manifest whose bytes have the content id that is expected."""
    actual = storage.hash_bytes(raw)
    if expected_id not in (None, actual):
        raise ArtifactError(
            f"{where}: {MANIFEST} was changed: its hash is {actual[:12]}, expected "
            f"{str(expected_id)[:12]}"
        )
    return parse_manifest(raw, where=f"{where}/{MANIFEST}")


def check_names(manifest: Manifest, sizes: Mapping[str, int], where: Path | str) -> None:
    """That the files of a listing are those of the manifest, each of its size."""
    names = sizes.keys() - {MANIFEST}
    wrong = [f"{name} is missing" for name in sorted(manifest.files.keys() - names)]
    wrong += [f"{name} is not in the manifest" for name in sorted(names - manifest.files.keys())]
    wrong += [
        f"{name} was changed"
        for name in sorted(names)
        if sizes[name] != manifest.sizes.get(name, sizes[name])
    ]
    _refuse(wrong, where)


def check_hashes(manifest: Manifest, hashes: Mapping[str, str], where: Path | str) -> None:
    _refuse(
        [
            f"{name} was changed"
            for name, wanted in sorted(manifest.files.items())
            if hashes.get(name) != wanted
        ],
        where,
    )


def _refuse(wrong: list[str], where: Path | str) -> None:
    if wrong:
        raise ArtifactError(
            f"{where}: not what its manifest says: {'; '.join(wrong)}; put these files back, or "
            "publish the checkpoint again"
        )


@cache
def versions() -> dict[str, str]:
    """Versions of what decides a result; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in (
        "medray",
        "torch",
        "transformers",
        "peft",
        "tokenizers",
        "numpy",
        "scikit-learn",
        "ray",
        "deepspeed",
        "bitsandbytes",
    ):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def git_commit() -> str | None:
    """The commit of the working folder, `-dirty` where files differ from it; None outside a
    repository."""
    if commit := environment.submitter_commit():
        return commit
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
