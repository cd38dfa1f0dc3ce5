"""Bytes on disk that other processes may read at any moment: written whole or not at all, addressed by their hashes."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs

from medray.errors import ArtifactError

_BLOCK = 1 << 20


def default_cache() -> Path:
    """What can be made again: converted bases, copies of remote checkpoints."""
    return Path(os.environ.get("MEDRAY_CACHE", "~/.cache/medray")).expanduser()


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_text(parts: Iterable[str]) -> str:
    """One hash of several texts in order; no two different sequences give the same bytes."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


def files(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def hash_folder(folder: Path, *, leave_out: Iterable[str] = ()) -> dict[str, str]:
    """sha256 of every file, by its path inside the folder."""
    out = set(leave_out)
    named = ((path.relative_to(folder).as_posix(), path) for path in files(folder))
    return {name: hash_file(path) for name, path in named if name not in out}


def write(path: Path, content: bytes) -> None:
    """Replace the file in one step, so that a reader sees the old bytes or the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def create(path: Path, content: bytes) -> bool:
    """Write the file only where there is none; of several writers exactly one gets True."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.link(name, path)
    except FileExistsError:
        return False
    finally:
        Path(name).unlink(missing_ok=True)
    return True


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that appears under its name only when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    filling = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        os.chmod(filling, 0o755)
        yield filling
        try:
            filling.rename(target)
        except OSError:
            if not target.is_dir():
                raise  # else another process was first with the same content, which is as good
    finally:
        shutil.rmtree(filling, ignore_errors=True)


def fetch(uri: str, target: Path) -> Path:
    """A local path for `uri`: itself where it is local, else a copy of the file or folder under `target`."""
    if "://" not in uri:
        return Path(uri)
    remote, root = pyarrow.fs.FileSystem.from_uri(uri)
    if remote.get_file_info(root).type == pyarrow.fs.FileType.NotFound:
        raise ArtifactError(f"{uri}: there is no such file or folder")
    with new_folder(target) as folder:
        is_file = remote.get_file_info(root).type == pyarrow.fs.FileType.File
        destination = folder / Path(root).name if is_file else folder
        pyarrow.fs.copy_files(
            root, str(destination), source_filesystem=remote, destination_filesystem=pyarrow.fs.LocalFileSystem(), chunk_size=_BLOCK
        )
    return target / Path(root).name if is_file else target
