"""Checkpoints: folders with a manifest, which records model, data, metrics and the hash of every
file.

The manifest is written last and never changes: a folder without one is not a checkpoint.
"""

import platform
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from medray.config import environment
from medray.config.schema import Section, parse, validate
from medray.config.trial import ModelConfig, Precision, TrainConfig
from medray.errors import ArtifactError
from medray.storage import files as storage

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1


class BaseRecord(Section):
    """The frozen weights that the adapter belongs to."""

    source: str
    revision: str | None
    weight_hash: str
    family: str
    note: str = ""


class TaskRecord(Section):
    options: dict[str, Any]
    state: dict[str, Any]  # what the task learned from the data: label names, thresholds


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
    """Synthetic inputs and the checkpoint's fp32 outputs for them, which show after loading that
    the model is the same."""

    texts: tuple[str, ...]
    outputs: tuple[tuple[float, ...], ...]


class Manifest(Section):
    schema_version: Literal[1] = 1
    task: TaskRecord
    base: BaseRecord
    trial: dict[str, Any]  # the resolved TrialConfig; only its model section for an import
    is_untuned: bool = False  # the base model without an adapter
    data_fingerprint: str | None  # None for an import
    split_fingerprint: str | None
    cursor: dict[str, int]  # the epoch and step of this checkpoint
    metrics: dict[str, float]  # on the validation split
    precision: PrecisionRecord
    seed: int
    versions: dict[str, str]
    git_commit: str | None
    probe: Probe
    files: dict[str, str] = {}
    sizes: dict[str, int] = {}  # bytes of each file; older manifests have none

    @property
    def model(self) -> ModelConfig:
        return validate(
            ModelConfig, self.trial.get("model") or {}, where=f"{MANIFEST}: trial.model"
        )

    @property
    def token_budget(self) -> int:
        """The trial's token budget, or the default for an import."""
        return int(
            self.trial.get("train", {}).get(
                "token_budget", TrainConfig.model_fields["token_budget"].default
            )
        )

    @property
    def quantization(self) -> str:
        return self.model.quantization


def save(folder: Path, fill: Callable[[Path], None], manifest: Manifest) -> Manifest:
    """Let `fill` write the files, hash them, and write the manifest last."""
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
    """Return the id of a whole checkpoint: the hash of its manifest, which holds the hash of every
    other file."""
    return storage.hash_bytes(_raw(folder))


def _raw(folder: Path) -> bytes:
    try:
        return storage.read_plain(folder / MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{folder}: is not a checkpoint, because it has no {MANIFEST}; restore the checkpoint, "
            "or publish it again"
        ) from None


def verify(folder: Path, *, expected_id: str | None = None) -> Manifest:
    """Return the manifest after comparing it with `expected_id`, and every file with its hash.

    Names and sizes are compared first, so that no file is read that the manifest does not name.
    """
    raw = _raw(folder)
    manifest = check_manifest(raw, folder, expected_id)
    check_names(manifest, storage.plain_sizes(folder), folder)
    check_hashes(manifest, storage.hash_folder(folder, leave_out=[MANIFEST]), folder)
    return manifest


def check_manifest(raw: bytes, where: Path | str, expected_id: str | None) -> Manifest:
    """Parse a manifest after comparing the hash of its bytes with `expected_id`."""
    actual = storage.hash_bytes(raw)
    if expected_id not in (None, actual):
        raise ArtifactError(
            f"{where}: {MANIFEST} was changed: its hash is {actual[:12]}, expected "
            f"{str(expected_id)[:12]}; restore it, or publish the checkpoint again"
        )
    return parse_manifest(raw, where=f"{where}/{MANIFEST}")


def check_names(manifest: Manifest, sizes: Mapping[str, int], where: Path | str) -> None:
    """Raise ArtifactError unless names and sizes of files are those of the manifest."""
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
            for name, file_hash in sorted(manifest.files.items())
            if hashes.get(name) != file_hash
        ],
        where,
    )


def _refuse(wrong: list[str], where: Path | str) -> None:
    if wrong:
        raise ArtifactError(
            f"{where}: differs from its manifest: {'; '.join(wrong)}; restore these files, or "
            "publish the checkpoint again"
        )


@cache
def versions() -> dict[str, str]:
    """Return the versions of packages that can change a result, if they are installed."""
    versions = {"python": platform.python_version()}
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
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    # A source tree need not be installed. Its package is imported from above this layer.
    versions.setdefault("medray", import_module("medray").__version__)
    return versions


@cache
def git_commit() -> str | None:
    """Return the commit of the working folder, with `-dirty` if files differ from it, or None
    outside a repository."""
    if commit := environment.driver_commit():
        return commit
    try:
        process = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip() or None
