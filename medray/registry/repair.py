"""Find damage in a storage path of releases, and its repair where there is one."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medray.config import environment
from medray.errors import MedrayError, UnreachableError
from medray.records import Move
from medray.registry.registry import Registry
from medray.registry.release import Release
from medray.storage import checkpoint
from medray.storage.store import LocalStore, Store


@dataclass(frozen=True)
class Finding:
    where: str
    what: str
    remedy: str
    mend: Callable[[], object] | None = None  # None: a person must do it
    is_broken: bool = True  # False: a note, everything works


def examine(registry: Registry) -> Iterator[Finding]:
    """Yield the damage without changing anything: aliases first, then records, then each
    checkpoint's files once."""
    store = registry.store
    for name in store.leftovers():
        yield Finding(
            f"{store.uri}/{name}",
            "is left by a process that died",
            "remove it",
            partial(_remove_leftover, store, name),
            False,
        )
    content_ids: dict[str, str] = {}
    for name in store.names("releases"):
        if name not in registry.names() or not registry.versions(name):
            yield _stray(f"{store.uri}/releases/{name}")
            continue
        releases: dict[int, Release] = {}
        for version in registry.versions(name):
            try:
                releases[version] = registry.read(name, version)
            except MedrayError as err:
                remedy = f"restore {version}.json from a backup; there is no other copy"
                yield Finding(f"{store.uri}/releases/{name}/{version}.json", _reason(err), remedy)
        content_ids |= {
            release.record.content_id: release.reference for release in releases.values()
        }
        for entry in store.names(f"releases/{name}"):
            if entry != "aliases" and not entry.endswith((".json", ".sig")):
                yield _stray(f"{store.uri}/releases/{name}/{entry}")
        for alias in store.names(f"releases/{name}/aliases"):
            yield from _examine_alias(registry, name, alias, releases)
    for content_id, reference in content_ids.items():
        yield from _examine_checkpoint(registry, content_id, reference)


def _examine_alias(
    registry: Registry, name: str, alias: str, releases: dict[int, Release]
) -> Iterator[Finding]:
    store, folder = registry.store, f"releases/{name}/aliases/{alias}"
    numbers = registry.move_numbers(name, alias)
    if not numbers:
        if folder not in store.leftovers():
            yield _stray(f"{store.uri}/{folder}")
        return
    moves: dict[int, Move] = {}
    errors: dict[int, str] = {}
    for number in numbers:
        try:
            moves[number] = registry.move(name, alias, number)
        except MedrayError as err:
            errors[number] = _reason(err)
    outcome = (
        f"it then points at {name}@{moves[max(moves)].version}" if moves else "it then has no move"
    )
    for number, reason in errors.items():
        place = f"{folder}/{number}.json"
        remedy, is_whole = (
            f"remove this move of {name}@{alias}: {outcome}",
            _may_be_whole(store, place),
        )
        if is_whole:
            remedy = (
                f"it may be complete: let this user read it, use the newest medray, or {remedy}"
            )
        yield Finding(
            f"{store.uri}/{place}",
            reason,
            remedy,
            None if is_whole else partial(store.remove, place),
        )
    gaps = sorted(set(range(1, numbers[-1])) - set(numbers))
    if gaps:
        what = f"moves {', '.join(map(str, gaps[:10]))} are missing"
        yield Finding(
            f"{store.uri}/{folder}",
            what,
            "its history has a gap, and everything works",
            is_broken=False,
        )
    if not moves:
        return
    newest = moves[max(moves)]
    release = releases.get(newest.version)
    if release is None:
        yield Finding(
            f"{name}@{alias}",
            f"points at version {newest.version}, which cannot be read",
            "point it at another version",
        )
    elif newest.record is None:
        yield Finding(
            f"{name}@{alias}",
            "is not bound to a record, since an earlier version wrote it",
            "point it again to bind it",
            is_broken=False,
        )
    elif newest.record != release.digest:
        what = f"the record of {release.reference} changed after the alias was pointed at it"
        yield Finding(
            f"{name}@{alias}",
            what,
            ("restore the record, or point the alias again if the change is yours"),
        )


def _may_be_whole(store: Store, place: str) -> bool:
    """Return whether a move may be complete: a later medray wrote it, or it cannot be read now."""
    try:
        content = json.loads(store.read(place))
    except UnreachableError:
        return True
    except (MedrayError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and isinstance(content.get("version"), int)


def _remove_leftover(store: Store, name: str) -> None:
    if name in store.leftovers():  # else another process continues its work
        store.remove(name)


def _examine_checkpoint(registry: Registry, content_id: str, reference: str) -> Iterator[Finding]:
    name = f"checkpoints/{content_id}"
    try:
        checkpoint.verify(registry.store.get_folder(name, anew=True), expected_id=content_id)
    except MedrayError as err:
        copy = _copy(registry, content_id)
        remedy = (
            f"copy it from {copy}"
            if copy
            else f"publish the checkpoint of {reference} again; there is no other copy here"
        )
        mend = partial(registry.store.put_folder, name, copy) if copy else None
        yield Finding(f"{registry.store.uri}/{name}", _reason(err), remedy, mend)


def _copy(registry: Registry, content_id: str) -> Path | None:
    """Return an undamaged copy of a checkpoint, from the cache or from a run below a local
    store."""
    places = [environment.cache_dir() / "checkpoints" / content_id]
    if isinstance(registry.store, LocalStore):
        places += [
            path.parent
            for path in registry.store.root.glob(
                f"*/*/trials/*/checkpoints/*/{checkpoint.MANIFEST}"
            )
        ]
    for place in places:
        try:
            checkpoint.verify(place, expected_id=content_id)
        except MedrayError:
            continue
        return place
    return None


def _stray(where: str) -> Finding:
    return Finding(
        where,
        "belongs to no release",
        "it does no harm; remove it if it is not yours",
        is_broken=False,
    )


def _reason(err: MedrayError) -> str:
    """Return the error without its place and remedy, which a finding has itself."""
    return str(err).rpartition("; ")[0].partition(": ")[2] or str(err)
