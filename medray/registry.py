"""Releases: checkpoints published under a name and a version, and aliases that say which version is meant.

A checkpoint is stored by the hash of its manifest, a version and an alias's every move are objects created by exactly one
writer. So nothing is overwritten, and two publishers cannot corrupt each other.
"""

import getpass
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from medray import card, checkpoint, storage
from medray.checkpoint import Manifest
from medray.engines.transformers import Precision
from medray.errors import ArtifactError, ConfigError, allowed
from medray.loading import Loaded, in_8_bits, load
from medray.models.adapter import CONFIG, WEIGHTS
from medray.models.build import export_merged
from medray.records import AS_IT_IS, MERGE_LIMIT, CalibrationRecord, Int8Record, MergeRecord, Move, ReleaseRecord, TestRecord
from medray.schema import validate
from medray.store import open_store
from medray.tasks.base import Task, restore

log = logging.getLogger(__name__)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NO_OPTIONS: Mapping[str, Any] = {}
_BY_VERSION = re.compile(r"(\d+)\.json")


@dataclass(frozen=True)
class Release:
    registry: "Registry"
    record: ReleaseRecord

    @property
    def reference(self) -> str:
        return f"{self.record.name}@{self.record.version}"

    def folder(self, *, anew: bool = False) -> Path:
        """The checkpoint on this machine, compared with the release's content id."""
        folder = self.registry.store.get_folder(f"checkpoints/{self.record.content_id}", anew=anew)
        found = checkpoint.content_id(folder)
        if found != self.record.content_id:
            raise ArtifactError(
                f"{self.reference}: manifest.json was changed: its hash is {found[:12]}, the release says {self.record.content_id[:12]}"
            )
        return folder

    def verify(self) -> None:
        """Recompute the hash of every file, where it is kept; what differs is named."""
        checkpoint.verify(self.folder(anew=True))

    def load(self, *, precision: Precision | None = None, **options: Any) -> Loaded:
        """Task, engine and calibration; hashes, base weights and probe are compared first. In 8 bits where `precision` is int8."""
        if precision not in (None, *get_args(Precision)):
            raise ConfigError(f"{self.reference}: there is no precision {precision!r}; {allowed(str(precision), get_args(Precision))}")
        loaded = load(self.folder(), precision=None if precision == "int8" else precision, **options)
        loaded = replace(loaded, task=self.task(loaded.manifest), calibration=self.record.calibration)
        return in_8_bits(loaded, self.record.int8) if precision == "int8" else loaded

    def task(self, manifest: Manifest) -> Task:
        """As it was trained, but for the options that this version has otherwise."""
        return restore({**manifest.task.options, **self.record.task_options}, manifest.task.state)

    def serves_merged(self) -> bool:
        """Whether the merged model may answer in its place: exact without 4 bits, and with them where it was measured to be."""
        merge = self.record.merge
        return merge.is_faithful if merge else checkpoint.read(self.folder()).quantization == "none"

    def export(self, target: Path, *, merged: bool) -> None:
        """A folder in the Hub's layout with a model card: the adapter with its tokenizer, or the merged model."""
        folder = self.folder()
        manifest = checkpoint.verify(folder)
        if target.exists():
            raise ArtifactError(f"{target}: is there already and is left alone; choose another folder")
        if merged:
            self._check_merge()
        elif manifest.is_untuned:
            raise ArtifactError(f"{self.reference}: is a base model as it is, without an adapter: export it with --merged")
        with storage.new_folder(target) as filling:
            if merged:
                export_merged(load(folder).built, filling)
            else:
                for path in [folder / WEIGHTS, folder / CONFIG, *sorted((folder / "tokenizer").iterdir())]:
                    (filling / path.name).write_bytes(path.read_bytes())
            (filling / "README.md").write_text(card.render(self.record, manifest, merged=merged), encoding="utf-8")

    def _check_merge(self) -> None:
        found = self.record.merge
        if found and not found.is_faithful:
            raise ArtifactError(
                f"{self.reference}: merged, its validation {found.metric} is {found.merged:.4f} instead of {found.unmerged:.4f};"
                f" allowed is a difference of {MERGE_LIMIT}: export it without --merged"
            )
        if not self.serves_merged():
            log.warning("%s: is in 4 bits and was published without its run: what merging does to its F1 was not measured", self.reference)


class Registry:
    """The releases under a storage path: a folder, or s3://BUCKET/PREFIX."""

    def __init__(self, uri: str) -> None:
        self.store = open_store(uri)

    def publish(
        self,
        place: Path | str,
        name: str,
        *,
        test: TestRecord | None = None,
        merge: MergeRecord | None = None,
        calibration: CalibrationRecord = AS_IT_IS,
        int8: Int8Record | None = None,
        notes: str = "",
        task_options: Mapping[str, Any] = _NO_OPTIONS,
    ) -> Release:
        """Store a checkpoint (a folder or URI) and claim the next version of a name for it."""
        _check_name("release", name)
        folder = storage.fetch(str(place))
        checkpoint.verify(folder)
        content_id = checkpoint.content_id(folder)
        self.store.put_folder(f"checkpoints/{content_id}", folder)
        while True:
            version = max(self.versions(name), default=0) + 1
            created = datetime.now(UTC).isoformat(timespec="seconds")
            record = ReleaseRecord(
                name=name,
                version=version,
                content_id=content_id,
                created=created,
                test=test,
                merge=merge,
                calibration=calibration,
                int8=int8,
                notes=notes,
                task_options=dict(task_options),
            )
            if self.store.create(f"releases/{name}/{version}.json", record.model_dump_json(indent=1).encode()):
                return Release(self, record)

    def change(self, reference: str, changes: Mapping[str, Any], *, name: str | None = None, notes: str = "") -> Release:
        """The same checkpoint as a new version, with other options of its task. Figures were measured without them and stay behind."""
        held = self.resolve(reference)
        folder = held.folder()
        manifest = checkpoint.read(folder)
        options = held.task(manifest).options
        for option in changes:
            if option not in options.CHANGEABLE:
                raise ConfigError(
                    f"{held.reference}: task {options.name!r} trains with its {option!r}; {allowed(option, options.CHANGEABLE)}"
                )
        kept = {**held.record.task_options, **changes}
        validate(type(options), {**manifest.task.options, **kept}, where=held.reference)
        return self.publish(
            folder,
            name or held.record.name,
            merge=held.record.merge,
            calibration=held.record.calibration,
            int8=held.record.int8,
            notes=notes or f"{held.reference} with another {' and '.join(changes)}",
            task_options=kept,
        )

    def find(self, name: str, folder: Path, calibration: CalibrationRecord, *, with_int8: bool = False) -> Release | None:
        """The version of a name that holds this checkpoint with this calibration already, if any; that was measured in 8 bits, if it must be."""
        wanted = checkpoint.content_id(folder)
        found = (self.resolve(f"{name}@{version}") for version in self.versions(name))
        same = (release for release in found if (release.record.content_id, release.record.calibration) == (wanted, calibration))
        return next((release for release in same if release.record.int8 or not with_int8), None)

    def names(self) -> list[str]:
        return self.store.names("releases")

    def versions(self, name: str) -> list[int]:
        found = (_BY_VERSION.fullmatch(entry) for entry in self.store.names(f"releases/{name}"))
        return sorted(int(match.group(1)) for match in found if match)

    def aliases(self, name: str) -> dict[str, int]:
        return {alias: self.history(name, alias)[-1].version for alias in self.store.names(f"releases/{name}/aliases")}

    def history(self, name: str, alias: str) -> list[Move]:
        """Every move of an alias, oldest first."""
        prefix = f"releases/{name}/aliases/{alias}"
        numbers = sorted(int(match.group(1)) for entry in self.store.names(prefix) if (match := _BY_VERSION.fullmatch(entry)))
        return [Move.model_validate_json(self.store.read(f"{prefix}/{number}.json")) for number in numbers]

    def point(self, name: str, alias: str, version: int) -> Move:
        """Point an alias at a version; its earlier moves stay as its history."""
        _check_name("alias", alias)
        if alias.isdigit():
            raise ConfigError(f"alias {alias!r} would be read as a version; an alias holds a letter")
        self.resolve(f"{name}@{version}")
        move = Move(version=version, time=datetime.now(UTC).isoformat(timespec="seconds"), by=getpass.getuser())
        while True:
            number = len(self.history(name, alias)) + 1
            if self.store.create(f"releases/{name}/aliases/{alias}/{number}.json", move.model_dump_json().encode()):
                return move

    def resolve(self, reference: str) -> Release:
        """`name@version`, `name@alias`, or a bare name for its latest version."""
        name, _, which = reference.partition("@")
        _check_name("release", name)
        versions = self.versions(name)
        if not versions:
            raise ArtifactError(f"{reference}: {self.store.uri} has no release {name!r}; {allowed(name, self.names())}")
        if not which:
            version = versions[-1]
        elif which.isdigit():
            version = int(which)
        else:
            aliases = self.aliases(name)
            if which not in aliases:
                raise ArtifactError(f"{reference}: {name!r} has no alias {which!r}; {allowed(which, aliases)}")
            version = aliases[which]
        if version not in versions:
            raise ArtifactError(f"{reference}: {name!r} has versions {', '.join(map(str, versions))}")
        raw = self.store.read(f"releases/{name}/{version}.json")
        try:
            return Release(self, ReleaseRecord.model_validate(json.loads(raw)))
        except (ValueError, ValidationError) as err:
            raise ArtifactError(f"{name}@{version}: its record cannot be read: {str(err).splitlines()[0]}") from None


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what} {name!r} is not a name: lower-case letters, digits, '.', '_' and '-', at most 64, starting with a letter or digit"
        )
