"""The store of releases: named objects, each written in one step, which exactly one writer can
create."""

import contextlib
import logging
import os
import re
import time
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from medray.config import environment
from medray.errors import ArtifactError, ConfigError
from medray.storage import checkpoint, files
from medray.storage.bucket import PROVIDERS
from medray.storage.object_store import ObjectStore

log = logging.getLogger(__name__)
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # our temporary files; other hidden ones are not
_HALF_WRITTEN_S = 3600  # a process may still be writing a younger file


class Store(Protocol):
    """Where releases are kept: a folder or an object store."""

    uri: str

    def read(self, name: str) -> bytes: ...

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless it exists. Of several writers exactly one gets True."""
        ...

    def names(self, prefix: str) -> list[str]:
        """Return the names directly below a prefix, without the prefix."""
        ...

    def remove(self, name: str) -> None: ...

    def leftovers(self) -> list[str]:
        """Return the names of incomplete files from killed processes, which nothing uses."""
        ...

    def check(self) -> None:
        """Raise an error if releases cannot be written here, before a study runs for hours."""
        ...

    def put_folder(self, name: str, folder: Path) -> None:
        """Copy a checkpoint to a name that ends in its content id. An existing copy is compared,
        and repaired if it differs."""
        ...

    def get_folder(self, name: str, *, anew: bool = False) -> Path:
        """Return the folder on this machine. `anew` reads the store even if there is a copy."""
        ...


def open_store(uri: str) -> Store:
    if is_object_store(uri):
        return ObjectStore(uri)
    if "://" in uri and not uri.startswith("file://"):
        raise ConfigError(
            f"{uri}: is neither a folder nor an object store; allowed: a path, file://PATH, "
            "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
        )
    return LocalStore(uri.removeprefix("file://"))


def is_object_store(uri: str) -> bool:
    return uri.partition("://")[0] in PROVIDERS and "://" in uri


class LocalStore:
    def __init__(self, root: str) -> None:
        self.root = files.absolute(root)
        self.uri = str(self.root)

    def read(self, name: str) -> bytes:
        try:
            return files.read_plain(self.root / name)
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(f"{self.root / name}: there is no such object") from None

    def create(self, name: str, content: bytes) -> bool:
        return files.create(self.root / name, content)

    def names(self, prefix: str) -> list[str]:
        folder = self.root / prefix
        try:
            return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as err:
            raise ArtifactError(
                f"{folder}: cannot be read: {err.strerror}; choose a place that this user may read"
            ) from None

    def remove(self, name: str) -> None:
        files.remove(self.root / name)

    def leftovers(self) -> list[str]:
        hidden = [
            path
            for part in ("checkpoints", "releases")
            for path in (self.root / part).rglob(".*")
            if _TEMPORARY.fullmatch(path.name)
        ]
        folders = [path for path in self.root.glob("releases/*/aliases/*") if path.is_dir()]
        empty = [
            path
            for path in folders
            if all(inside.name.startswith(".") for inside in path.iterdir())
        ]
        before = time.time() - _HALF_WRITTEN_S
        names = []
        for path in {*hidden, *empty}:
            with contextlib.suppress(FileNotFoundError):  # its writer has finished
                if all(one.lstat().st_mtime < before for one in [path, *path.rglob("*")]):
                    names.append(path.relative_to(self.root).as_posix())
        return sorted(names)

    def check(self) -> None:
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise ConfigError(
                f"{self.root}: {folder} is not a folder that can be written to; choose another one"
            )

    def put_folder(self, name: str, folder: Path) -> None:
        target = self.root / name
        if target.is_symlink() or target.is_file():
            files.remove(target)
        if target.is_dir():
            locks = environment.cache_dir() / "locks"
            locks.mkdir(parents=True, exist_ok=True)
            # Two repairs at once would remove each other's temporary files.
            with FileLock(locks / f"{target.name}.lock"):
                self._repair(target, folder)
        else:
            with files.new_folder(target) as filling:
                for path in files.files(folder):
                    copy = filling / path.relative_to(folder)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(path.read_bytes())

    def _repair(self, target: Path, folder: Path) -> None:
        try:
            checkpoint.verify(target, expected_id=target.name)
        except ArtifactError as err:
            log.warning("%s; repairing it from %s", err, folder)
            files.mirror(folder, target)

    def get_folder(self, name: str, *, anew: bool = False) -> Path:
        return self.root / name
