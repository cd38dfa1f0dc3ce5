"""Files that other processes may read at any time: each is written in one step, and known by its
hash."""

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.fs

from medray.config import environment
from medray.errors import ArtifactError, ConfigError, DiskFullError, UnreachableError

_BLOCK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,  # as in /proc, where nothing can be made
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTDIR,
)  # the last two mean that a file is where a folder must be
_REST_S = 2.0
LARGEST_JSON = 64 << 20  # the limit for a manifest, a record or a move, in bytes


def check_place(value: object, where: str) -> str:
    """Return a path or an address as text, or raise with where it was given."""
    place = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(place, str):
        raise ConfigError(f"{where}: is of type {type(value).__name__}; give a path as text")
    try:
        is_path = b"\0" not in os.fsencode(place)
    except UnicodeEncodeError:
        is_path = False
    if not is_path:
        raise ConfigError(f"{where}: {place!r:.80} has a character that no path has; correct it")
    return place


def absolute(path: str) -> Path:
    """Return a storage path as absolute: below the working folder, or in a submitted job below
    ~/medray, since Ray deletes the job's working folder."""
    place = Path(path.removeprefix("file://")).expanduser()
    below = Path("~/medray").expanduser() if environment.is_submitted_job() else Path.cwd()
    return (below / place).resolve()


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_once(path: Path) -> str:
    """Return the hash of a large file, from the cache where it is the file that was hashed.

    That is decided by device, inode, size and both times. Every write sets the time of change, and
    no program can set it back. A hash is stored only once the file has rested for two seconds,
    since two writes in a row may have the same time."""
    path = path.resolve()
    stamp = _stamp(path)
    place = environment.cache_dir() / "hashes" / f"{hash_text([str(path)])[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(place.read_bytes())
        if record["stamp"] == stamp:
            return str(record["hash"])
    start = time.time()
    digest = hash_file(path)
    if _stamp(path) == stamp and start - path.stat().st_ctime > _REST_S:
        with suppress(OSError, DiskFullError):  # the cache only saves time
            place.parent.mkdir(parents=True, exist_ok=True)
            write(place, json.dumps({"stamp": stamp, "hash": digest}).encode())
    return digest


def _stamp(path: Path) -> list[int]:
    info = path.stat()
    return [info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns]


def hash_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def hash_text(parts: Iterable[str]) -> str:
    """Hash several texts in order. Lengths are hashed too, so different sequences differ."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


def files(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def read_plain(path: Path, limit: int = LARGEST_JSON) -> bytes:
    """Return the bytes of a regular file. A link, a pipe, a device or a file above the limit raises
    ArtifactError unread."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise ArtifactError(f"{path}: is not a regular file; put the file itself there")
            if info.st_size > limit:
                raise ArtifactError(
                    f"{path}: has {info.st_size} bytes, and at most {limit} are read; restore the "
                    "file"
                )
            return file.read(limit)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as err:
        what, kind = (
            ("is a link", ArtifactError)
            if err.errno == errno.ELOOP
            else (f"cannot be read: {err.strerror}", UnreachableError)
        )
        raise kind(f"{path}: {what}; put a regular file there that this user may read") from None


def plain_sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of every file, by its path inside the folder. A link, a pipe or a device
    raises ArtifactError."""
    sizes: dict[str, int] = {}
    for at, below, names in os.walk(folder):
        for name in [*below, *names]:
            path = Path(at, name)
            try:
                info = path.lstat()
            except FileNotFoundError:  # another process is repairing this copy
                continue
            if stat.S_ISREG(info.st_mode):
                sizes[path.relative_to(folder).as_posix()] = info.st_size
            elif not stat.S_ISDIR(info.st_mode):
                kind = "a link" if stat.S_ISLNK(info.st_mode) else "neither a file nor a folder"
                raise ArtifactError(f"{path}: is {kind}; put the file itself there")
    return sizes


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with its contents, if it exists."""
    with writable(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def mirror(source: Path, target: Path) -> None:
    """Make a folder hold exactly the source's files. Each file is replaced in one step, so readers
    see an old or a new one."""
    names = {path.relative_to(source) for path in files(source)}
    folders = {above for path in names for above in path.parents}
    for path in sorted(target.rglob("*"), reverse=True):
        inside = path.relative_to(target)
        is_folder = path.is_dir() and not path.is_symlink()
        if inside not in (folders if is_folder else names) or not (
            is_folder or stat.S_ISREG(path.lstat().st_mode)
        ):
            remove(path)
    for inside in sorted(names):
        place = target / inside
        if not place.is_file() or hash_file(place) != hash_file(source / inside):
            write(place, (source / inside).read_bytes())


def hash_folder(folder: Path, *, leave_out: Iterable[str] = ()) -> dict[str, str]:
    """Return the sha256 of every file, by its path inside the folder."""
    out = set(leave_out)
    paths = ((path.relative_to(folder).as_posix(), path) for path in files(folder))
    return {name: hash_file(path) for name, path in paths if name not in out}


def write(path: Path, content: bytes) -> None:
    """Replace a file in one step, so that a reader sees the old or the new bytes."""
    with _beside(path, content) as temporary, writable(path):
        os.replace(temporary, path)


def create(path: Path, content: bytes) -> bool:
    """Write a file unless it exists. Of several writers exactly one gets True."""
    with _beside(path, content) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
    return True


@contextmanager
def _beside(path: Path, content: bytes) -> Iterator[Path]:
    """Write the content to a temporary file beside `path`, and remove it after the block unless it
    was moved."""
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turn errors about missing permissions in the block into ArtifactError."""
    try:
        yield
    except OSError as err:
        if err.errno not in _NOT_WRITABLE:
            raise
        raise ArtifactError(
            f"{path}: cannot be written: {err.strerror}; choose a place that this user may write to"
        ) from None


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder to fill, which gets its name only if the block ends without an error."""
    with writable(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        filling = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        os.chmod(filling, 0o755)
        yield filling
        try:
            with writable(target):
                filling.rename(target)
        except (OSError, ArtifactError):
            if not target.is_dir():
                raise  # else another process has written the same content
    finally:
        shutil.rmtree(filling, ignore_errors=True)


def is_full(err: BaseException | None) -> bool:
    """Return whether a write failed because the disk is full. Libraries keep the system's message,
    or the system's error as a cause."""
    while err is not None:
        if getattr(err, "errno", None) in _FULL or any(
            os.strerror(number) in str(err) for number in _FULL
        ):
            return True
        err = err.__cause__ or err.__context__
    return False


def full(where: Path | str, then: str = "go on with --resume") -> DiskFullError:
    return DiskFullError(
        f"{where}: {os.strerror(errno.ENOSPC)}; files written before are complete; free space "
        f"(`medray gc` removes leftovers of earlier studies), then {then}"
    )


@contextmanager
def room_for(folder: Path) -> Iterator[None]:
    """Turn any error about a full disk in the block into DiskFullError."""
    try:
        yield
    except Exception as err:  # each library raises its own class
        if not is_full(err):
            raise
        raise full(folder) from err


def fetch(uri: str) -> Path:
    """Return a local folder or file: the path itself, or a copy in the cache. The copy is made
    once, since fetched files never change."""
    if "://" not in uri:
        return Path(uri)
    remote, root = pyarrow.fs.FileSystem.from_uri(uri)
    kind = remote.get_file_info(root).type
    if kind == pyarrow.fs.FileType.NotFound:
        raise ArtifactError(f"{uri}: there is no such file or folder; correct the address")
    target = environment.cache_dir() / "fetched" / hash_text([uri])[:32]
    place = target / Path(root).name
    if not target.is_dir():
        with new_folder(target) as filling:
            copy = filling / place.name
            local = pyarrow.fs.LocalFileSystem()
            pyarrow.fs.copy_files(
                root,
                str(copy),
                source_filesystem=remote,
                destination_filesystem=local,
                chunk_size=_BLOCK,
            )
    return place
