"""Releases: checkpoints published under a name and a version, and aliases that say which version is meant.

A checkpoint is stored by the hash of its manifest, a version and an alias's every move are objects created by exactly one
writer. So nothing is overwritten, and two publishers cannot corrupt each other.
"""

import getpass
import logging
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from medray.config.schema import parse, validate
from medray.errors import ArtifactError, ConfigError, UnreachableError, allowed
from medray.records import AS_IT_IS, NAME, CalibrationRecord, MergeRecord, Move, ReleaseRecord, TestRecord
from medray.registry import signatures
from medray.registry.release import Release, check_changeable, probe_record
from medray.storage import checkpoint, files
from medray.storage.store import open_store
from medray.tasks.base.protocol import restore

log = logging.getLogger(__name__)
_Read = TypeVar("_Read")
_NAME = re.compile(NAME)
_NO_OPTIONS: Mapping[str, Any] = {}
_NUMBERED = re.compile(r"([1-9][0-9]{0,8})\.json")


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
        probe = probe_record(str(place), task, calibration, manifest)
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
            parse(ReleaseRecord, raw, where=f"{name}@{version}: its record")  # a figure that is no number could not be read again
            if self.store.create(f"releases/{name}/{version}.json", raw):
                return Release(self, record, raw)

    def change(self, reference: str, changes: Mapping[str, Any], *, name: str | None = None, notes: str = "") -> Release:
        """The same checkpoint as a new version, with other options of its task. Figures were measured without them and stay behind."""
        held = self.resolve(reference)
        folder = held.folder()
        manifest = checkpoint.read(folder)
        task = held.task(manifest)
        options = task.options
        for option in changes:
            check_changeable(held.reference, task, option)
        kept = {**held.record.task_options, **changes}
        validate(type(options), {**manifest.task.options, **kept}, where=held.reference)
        return self.publish(
            folder,
            name or held.record.name,
            merge=held.record.merge,
            calibration=held.record.calibration,
            notes=notes or f"{held.reference} with another {' and '.join(changes)}",
            task_options=kept,
        )

    def find(self, name: str, folder: Path, calibration: CalibrationRecord) -> Release | None:
        """The version of a name that holds this checkpoint with this calibration already, if any."""
        wanted = checkpoint.content_id(folder)
        found = self.readable(name)
        same = (release for release in found if (release.record.content_id, release.record.calibration) == (wanted, calibration))
        return next(same, None)

    def sign(self, release: Release, private_key: Path) -> None:
        """Put a signature of the release's record beside it, one for each key."""
        signature = signatures.sign(release.raw, private_key)
        name = self.signature_name(release, signature.key_id)
        if self.store.create(name, signature.bundle):
            return
        try:
            signatures.check(release.raw, self.store.read(name), signature.public_key, where=release.reference)
        except ArtifactError as err:
            log.warning("%s; it is signed anew", err)
            self.store.remove(name)
            self.store.create(name, signature.bundle)

    def signature_name(self, release: Release, key_id: str) -> str:
        return f"releases/{release.record.name}/{release.record.version}.{key_id}.sig"

    def readable(self, name: str) -> list[Release]:
        """Every version of a name; one whose record cannot be read is told and left out."""
        return _readable(partial(self.read, name), self.versions(name))

    def names(self) -> list[str]:
        return [name for name in self.store.names("releases") if _NAME.fullmatch(name)]

    def versions(self, name: str) -> list[int]:
        return self._numbers(f"releases/{name}")

    def _numbers(self, prefix: str) -> list[int]:
        matches = (_NUMBERED.fullmatch(entry) for entry in self.store.names(prefix))
        return sorted(int(match.group(1)) for match in matches if match)

    def alias_names(self, name: str) -> list[str]:
        """Aliases that were pointed at a version; a folder without a move is what is left of a process that was killed."""
        prefix = f"releases/{name}/aliases"
        return [alias for alias in self.store.names(prefix) if _NAME.fullmatch(alias) and self._numbers(f"{prefix}/{alias}")]

    def newest(self, name: str, alias: str) -> Move:
        """The move that says where an alias stands."""
        numbers = self.move_numbers(name, alias)
        if not numbers:
            raise ArtifactError(
                f"{_short(name)}@{_short(alias)}: {name!r} has no alias {_short(alias)!r}; {allowed(alias[:80], self.alias_names(name))}"
            )
        return self.move(name, alias, numbers[-1])

    def move_numbers(self, name: str, alias: str) -> list[int]:
        return self._numbers(f"releases/{name}/aliases/{alias}") if _NAME.fullmatch(alias) else []

    def move(self, name: str, alias: str, number: int) -> Move:
        place = f"releases/{name}/aliases/{alias}/{number}.json"
        return parse(Move, self.store.read(place), where=f"{self.store.uri}/{place}")

    def history(self, name: str, alias: str) -> list[Move]:
        """Every move of an alias, oldest first; one that cannot be read is told and left out."""
        return _readable(partial(self.move, name, alias), self.move_numbers(name, alias))

    def point(self, name: str, alias: str, version: int, *, digest: str | None = None) -> Move:
        """Point an alias at a version and its record, of which a digest may be expected; its earlier moves stay as its history."""
        _check_name("alias", alias)
        if alias.isdigit():
            raise ConfigError(f"alias {alias!r} would be read as a version; an alias holds a letter")
        release = self.resolve(f"{name}@{version}", digest=digest)
        time = datetime.now(UTC).isoformat(timespec="seconds")
        move = Move(version=version, record=release.digest, time=time, by=getpass.getuser())
        while True:
            number = _next(self.move_numbers(name, alias), f"{self.store.uri}/releases/{name}/aliases/{alias}")
            if self.store.create(f"releases/{name}/aliases/{alias}/{number}.json", move.model_dump_json().encode()):
                return move

    def resolve(self, reference: str, *, digest: str | None = None) -> Release:
        """`name@version`, `name@alias`, or a bare name for its latest version. Its record has the digest that is expected, or that its alias is bound to."""
        name, _, which = reference.partition("@")
        _check_name("release", name)
        versions = self.versions(name)
        if not versions:
            raise ArtifactError(f"{_short(reference)}: {self.store.uri} has no release {name!r}; {allowed(name, self.names())}")
        if not which:
            version = versions[-1]
        elif is_version(which):
            version = int(which[:12])
        else:
            move = self.newest(name, which)
            version, digest = move.version, move.record
        if version not in versions:
            raise ArtifactError(f"{_short(reference)}: {name!r} has versions {', '.join(map(str, versions[-20:]))}")
        release = self.read(name, version)
        release._check_digest(digest, _short(reference))
        return release

    def read(self, name: str, version: int) -> Release:
        """The release that a record describes, which says of itself where it is."""
        raw = self.store.read(f"releases/{name}/{version}.json")
        record = parse(ReleaseRecord, raw, where=f"{name}@{version}: its record")
        if (record.name, record.version) != (name, version):
            raise ArtifactError(f"{name}@{version}: its record is that of {record.name}@{record.version}; put the record back")
        return Release(self, record, raw)


def is_version(which: str) -> bool:
    """Whether a reference names a version by its number, and no alias."""
    return which.isascii() and which.isdigit()


def _readable(read: Callable[[int], _Read], numbers: list[int]) -> list[_Read]:
    found = []
    for number in numbers:
        try:
            found.append(read(number))
        except UnreachableError:  # it may be whole: to leave it out would send a rollback one version too far
            raise
        except ArtifactError as err:
            log.warning("%s; it is left out", err)
    return found


def _next(numbers: list[int], where: str) -> int:
    number = max(numbers, default=0) + 1
    if number >= 10**9:
        raise ArtifactError(f"{where}: {number - 1}.json leaves no next number; move this file away")
    return number


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what} {_short(name)!r} is not a name: lower-case letters, digits, '.', '_' and '-', at most 64, starting with a letter or digit"
        )
