"""Named objects that are written whole, never half, and can be claimed by exactly one writer."""

import os
from pathlib import Path
from typing import Protocol

from medray import storage
from medray.errors import ArtifactError, ConfigError
from medray.store_s3 import S3Store


class Store(Protocol):
    uri: str

    def read(self, name: str) -> bytes: ...

    def create(self, name: str, content: bytes) -> bool:
        """Write the object only where there is none; of several writers exactly one gets True."""
        ...

    def names(self, prefix: str) -> list[str]:
        """Names of what lies directly below a prefix, without it."""
        ...

    def check(self) -> None:
        """Raise what would keep a release from being written here, before hours go by."""
        ...

    def put_folder(self, name: str, folder: Path) -> None:
        """Copy a checkpoint under a name that ends in its content id, so that who comes second finds the same."""
        ...

    def get_folder(self, name: str, *, anew: bool = False) -> Path:
        """The folder on this machine; anew: read where it is kept, though a copy was made before."""
        ...


def open_store(uri: str) -> Store:
    if uri.startswith("s3://"):
        return S3Store(uri)
    if "://" in uri and not uri.startswith("file://"):
        raise ConfigError(f"{uri}: releases are kept in a folder or in S3; allowed: a path, file://PATH or s3://BUCKET/PREFIX")
    return LocalStore(uri.removeprefix("file://"))


class LocalStore:
    def __init__(self, root: str) -> None:
        self.root = storage.absolute(root)
        self.uri = str(self.root)

    def read(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(f"{self.root / name}: there is no such object") from None

    def create(self, name: str, content: bytes) -> bool:
        return storage.create(self.root / name, content)

    def names(self, prefix: str) -> list[str]:
        folder = self.root / prefix
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []

    def check(self) -> None:
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise ConfigError(f"{self.root}: {folder} is not a folder that can be written to")

    def put_folder(self, name: str, folder: Path) -> None:
        target = self.root / name
        if not target.is_dir():
            with storage.new_folder(target) as filling:
                for path in storage.files(folder):
                    copy = filling / path.relative_to(folder)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(path.read_bytes())

    def get_folder(self, name: str, *, anew: bool = False) -> Path:
        return self.root / name
