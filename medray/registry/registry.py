"""Releases: checkpoints published under a name and a version, and aliases that point at a version.

The hash of its manifest addresses a checkpoint. Exactly one writer creates each version and each
move of an alias. So nothing is overwritten, and two publishers cannot corrupt each other."""

import getpass
import logging
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from medray.config.schema import parse, validate
from medray.errors import ArtifactError, ConfigError, UnreachableError, suggest
from medray.records import (
    AS_IT_IS,
    NAME,
    CalibrationRecord,
    MergeRecord,
    Move,
    ReleaseRecord,
    TestRecord,
)
from medray.registry import signatures
from medray.registry.predictions import probe_record
from medray.registry.release import Release, check_changeable
from medray.storage import checkpoint, files
from medray.storage.store import open_store
from medray.tasks.base.protocol import restore

log = logging.getLogger(__name__)
_Item = TypeVar("_Item")
_NAME = re.compile(NAME)
_NO_OPTIONS: Mapping[str, Any] = {}
_NUMBER_FILE = re.compile(r"([1-9][0-9]{0,8})\.json")


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
        notes: str = "",
        task_options: Mapping[str, Any] = _NO_OPTIONS,
    ) -> Release:
        """Store a checkpoint (a folder or URI) and claim the next version of a name for it."""
        _check_name("release", name)
        folder = files.fetch(str(place))
        manifest = checkpoint.verify(folder)
        content_id = checkpoint.content_id(folder)
        task = restore({**manifest.task.options, **task_options}, manifest.task.state)
        probe = probe_record(str(place), task, calibration, manifest.probe)
        self.store.put_folder(f"checkpoints/{content_id}", folder)
        while True:
            version = _next(self.versions(name), f"{self.store.uri}/releases/{name}")
            created = datetime.now(UTC).isoformat(timespec="seconds")
            record = ReleaseRecord(
                name=name,
                version=version,
                content_id=content_id,
                created=created,
                test=test,
                merge=merge,
                calibration=calibration,
                notes=notes,
                task_options=dict(task_options),
                probe=probe,
            )
            raw = record.model_dump_json(indent=1).encode()
            # A record with a metric that is not a number cannot be read, so check it before the
            # write.
            parse(ReleaseRecord, raw, where=f"{name}@{version}: its record")
            if self.store.create(f"releases/{name}/{version}.json", raw):
                return Release(self, record, raw)

    def change(
        self,
        reference: str,
        changes: Mapping[str, Any],
        *,
        name: str | None = None,
        notes: str = "",
    ) -> Release:
        """Publish the same checkpoint with other options of its task. Leave out its test metrics,
        which were measured without them."""
        release = self.resolve(reference)
        record, folder = release.record, release.folder()
        manifest = checkpoint.read(folder)
        task = release.task(manifest)
        for option in changes:
            check_changeable(release.reference, task, option)
        task_options = {**record.task_options, **changes}
        validate(
            type(task.options), {**manifest.task.options, **task_options}, where=release.reference
        )
        return self.publish(
            folder,
            name or record.name,
            merge=record.merge,
            calibration=record.calibration,
            notes=notes or f"{release.reference} with another {' and '.join(changes)}",
            task_options=task_options,
        )

    def find(self, name: str, folder: Path, calibration: CalibrationRecord) -> Release | None:
        """Return the version of a name with this checkpoint and calibration, if there is one."""
        _check_name("release", name)
        content = checkpoint.content_id(folder), calibration
        return next(
            (
                release
                for release in self.readable(name)
                if (release.record.content_id, release.record.calibration) == content
            ),
            None,
        )

    def sign(self, release: Release, private_key: Path) -> None:
        """Store a signature of the release's record beside it, one per key."""
        signature = signatures.sign(release.raw, private_key)
        name = self.signature_name(release, signature.key_id)
        if self.store.create(name, signature.bundle):
            return
        try:
            signatures.check(
                release.raw, self.store.read(name), signature.public_key, where=release.reference
            )
        except ArtifactError as err:
            log.warning("%s; a new signature replaces it", err)
            self.store.remove(name)
            self.store.create(name, signature.bundle)

    def signature_name(self, release: Release, key_id: str) -> str:
        return f"releases/{release.record.name}/{release.record.version}.{key_id}.sig"

    def readable(self, name: str) -> list[Release]:
        """Return each version of a name. Log and skip a version with an unreadable record."""
        return _readable(partial(self.read, name), self.versions(name))

    def names(self) -> list[str]:
        return [name for name in self.store.names("releases") if _NAME.fullmatch(name)]

    def versions(self, name: str) -> list[int]:
        return self._numbers(f"releases/{name}")

    def _numbers(self, prefix: str) -> list[int]:
        matches = (_NUMBER_FILE.fullmatch(entry) for entry in self.store.names(prefix))
        return sorted(int(match.group(1)) for match in matches if match)

    def alias_names(self, name: str) -> list[str]:
        """Return the aliases that point at a version. A folder without a move is left by a process
        that died."""
        prefix = f"releases/{name}/aliases"
        return [
            alias
            for alias in self.store.names(prefix)
            if _NAME.fullmatch(alias) and self._numbers(f"{prefix}/{alias}")
        ]

    def newest(self, name: str, alias: str) -> Move:
        """Return the last move of an alias, which names its version."""
        numbers = self.move_numbers(name, alias)
        if not numbers:
            names = self.alias_names(name)
            advice = (
                suggest(alias[:80], names)
                if names
                else "there is none; name a version, or point an alias at one: medray promote"
            )
            raise ArtifactError(
                f"{_short(name)}@{_short(alias)}: {name!r} has no alias {_short(alias)!r}; {advice}"
            )
        return self.move(name, alias, numbers[-1])

    def move_numbers(self, name: str, alias: str) -> list[int]:
        return self._numbers(f"releases/{name}/aliases/{alias}") if _NAME.fullmatch(alias) else []

    def move(self, name: str, alias: str, number: int) -> Move:
        place = f"releases/{name}/aliases/{alias}/{number}.json"
        return parse(Move, self.store.read(place), where=f"{self.store.uri}/{place}")

    def history(self, name: str, alias: str) -> list[Move]:
        """Return each move of an alias, oldest first. Log and skip an unreadable move."""
        return _readable(partial(self.move, name, alias), self.move_numbers(name, alias))

    def point(self, name: str, alias: str, version: int, *, digest: str | None = None) -> Move:
        """Point an alias at a version and its record. Earlier moves stay as its history.

        Raise if the record has another digest than the given one."""
        check_alias(alias)
        release = self.resolve(f"{name}@{version}", digest=digest)
        time = datetime.now(UTC).isoformat(timespec="seconds")
        move = Move(version=version, record=release.digest, time=time, by=getpass.getuser())
        while True:
            number = _next(
                self.move_numbers(name, alias), f"{self.store.uri}/releases/{name}/aliases/{alias}"
            )
            if self.store.create(
                f"releases/{name}/aliases/{alias}/{number}.json", move.model_dump_json().encode()
            ):
                return move

    def resolve(self, reference: str, *, digest: str | None = None) -> Release:
        """Return the release of `name@version` or `name@alias`, or the latest version of a bare
        name.

        Raise if its record has another digest than the given one, or than its alias names."""
        if not isinstance(reference, str):
            raise ConfigError(
                f"release: is of type {type(reference).__name__}; give a text such as NAME@VERSION"
            )
        name, _, which = reference.partition("@")
        _check_name("release", name)
        versions = self.versions(name)
        if not versions:
            others = self.names()
            raise ArtifactError(
                f"{_short(reference)}: {self.store.uri} has no release {name!r}; "
                + (
                    suggest(name, others)
                    if others
                    else "publish one, or give another storage path (--storage-path)"
                )
            )
        if not which:
            version = versions[-1]
        elif is_version(which):
            version = int(which[:12])
        else:
            move = self.newest(name, which)
            version, digest = move.version, move.record
        if version not in versions:
            raise ArtifactError(
                f"{_short(reference)}: {name!r} has versions {', '.join(map(str, versions[-20:]))}"
            )
        release = self.read(name, version)
        release.check_digest(digest, _short(reference))
        return release

    def read(self, name: str, version: int) -> Release:
        """Return the release of a version, whose record must name the same version."""
        raw = self.store.read(f"releases/{name}/{version}.json")
        record = parse(ReleaseRecord, raw, where=f"{name}@{version}: its record")
        if (record.name, record.version) != (name, version):
            raise ArtifactError(
                f"{name}@{version}: its record is that of {record.name}@{record.version}; restore "
                "the "
                "record"
            )
        return Release(self, record, raw)


def is_version(which: str) -> bool:
    """Return whether the second part of a reference is a version number."""
    return which.isascii() and which.isdigit()


def _readable(read: Callable[[int], _Item], numbers: list[int]) -> list[_Item]:
    items = []
    for number in numbers:
        try:
            items.append(read(number))
        except UnreachableError:
            # The item may be complete. Without it, a rollback would go one version too far.
            raise
        except ArtifactError as err:
            log.warning("%s; it is skipped", err)
    return items


def _next(numbers: list[int], where: str) -> int:
    number = max(numbers, default=0) + 1
    if number >= 10**9:
        raise ArtifactError(
            f"{where}: {number - 1}.json is the largest number; move this file away"
        )
    return number


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"


def check_alias(alias: str) -> None:
    _check_name("alias", alias)
    if alias.isdigit():
        raise ConfigError(f"alias {alias!r} looks like a version; use an alias with a letter")


def _check_name(what: str, name: str) -> None:
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ConfigError(
            f"{what} {_short(str(name))!r} is not a name: lower-case letters, digits, '.', '_' and "
            "'-', at most 64, starting with a letter or digit"
        )
