"""The store of releases in an object store."""

import logging
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from medray.config import environment
from medray.errors import ArtifactError, ConfigError
from medray.storage import checkpoint
from medray.storage import files as storage
from medray.storage.bucket import NO_BUCKET, Bucket, error_code, is_reply_lost

log = logging.getLogger(__name__)
_NUM_THREADS = 8
_MARK = ".medray"
_NUM_TRIES = 5  # of a conditional PUT that met another one, or whose reply was lost
_PART_BYTES = 8 << 20  # a file is uploaded in at most 10,000 parts


class ObjectStore:
    """A store in a bucket. The endpoint must honor conditional PUTs."""

    def __init__(self, uri: str) -> None:
        self.bucket = Bucket.parse(uri)
        self.uri = self.bucket.uri
        self._objects = self.bucket.connect()

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectStore, (self.uri,)  # a client cannot cross processes

    def read(self, name: str) -> bytes:
        with self.bucket.errors():
            try:
                reply = self._objects.get(name)
            except FileNotFoundError as err:
                if error_code(err) in NO_BUCKET:
                    raise
                raise ArtifactError(f"{self.uri}/{name}: there is no such object") from None
            if reply.meta["size"] > storage.LARGEST_JSON:
                raise ArtifactError(
                    f"{self.uri}/{name}: has {reply.meta['size']} bytes, and at most "
                    f"{storage.LARGEST_JSON} are read; restore the object"
                )
            return bytes(reply.bytes())

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless it exists. Of several writers exactly one gets True."""
        from obstore.exceptions import AlreadyExistsError, GenericError

        writer = uuid.uuid4().hex
        with self.bucket.errors():
            for number in range(_NUM_TRIES):
                try:
                    self._objects.put(name, content, mode="create", attributes={"writer": writer})
                    return True
                except AlreadyExistsError:
                    # A PUT whose reply was lost is repeated, so the object may be its own.
                    owner = self._writer(name)
                    if owner is not None:
                        return owner == writer
                except GenericError as err:
                    if number + 1 == _NUM_TRIES or not is_reply_lost(err):
                        raise
                time.sleep(0.05 * 2**number)  # another PUT may be under way
        return False

    def names(self, prefix: str) -> list[str]:
        with self.bucket.errors():
            listing = self._objects.list_with_delimiter(prefix or None)
        paths = [*listing["common_prefixes"], *(entry["path"] for entry in listing["objects"])]
        below = f"{prefix}/" if prefix else ""
        return sorted({path.removeprefix(below) for path in paths if path != prefix} - {""})

    def remove(self, name: str) -> None:
        with self.bucket.errors():
            try:
                self._objects.delete(name)
            except FileNotFoundError as err:
                if error_code(err) in NO_BUCKET:
                    raise

    def leftovers(self) -> list[str]:
        return []  # an object is never written in part

    def check(self) -> None:
        """Raise ConfigError unless the endpoint refuses to create an object twice, which claims of
        versions need. The first check leaves a small object."""
        self.names("releases")
        self.create(_MARK, b"releases of medray\n")
        if self.create(_MARK, b""):
            raise ConfigError(
                f"{self.uri}: this endpoint ignores If-None-Match, so two publishers could claim "
                "one version; use another endpoint"
            )

    def put_folder(self, name: str, folder: Path) -> None:
        """Upload a checkpoint, its manifest last: a folder without a manifest is uploaded again."""
        manifest = folder / checkpoint.MANIFEST
        if checkpoint.MANIFEST in self.names(name):
            try:
                self.get_folder(name, anew=True)
                return
            except ArtifactError as err:
                log.warning("%s; repairing it from %s", err, folder)
            self._upload(manifest, f"{name}/{checkpoint.MANIFEST}")
        files = {path.relative_to(folder).as_posix(): path for path in storage.files(folder)}
        with self.bucket.errors(), ThreadPoolExecutor(_NUM_THREADS) as pool:
            others = [file for file in files if file != checkpoint.MANIFEST]
            list(pool.map(lambda file: self._upload(files[file], f"{name}/{file}"), others))
        self.create(f"{name}/{checkpoint.MANIFEST}", manifest.read_bytes())
        for more in self._sizes(name).keys() - files.keys():
            self.remove(f"{name}/{more}")

    def get_folder(self, name: str, *, anew: bool = False) -> Path:
        """Return a copy in the cache. Only complete copies with the right content id get there."""
        target = environment.cache_dir() / name
        if anew or not target.is_dir():
            with storage.new_folder(target) as filling:
                self._download(name, filling)
                if target.is_dir():  # the older copy may be damaged
                    storage.mirror(filling, target)
        return target

    def _download(self, name: str, folder: Path) -> None:
        """Download the manifest first: files that it does not name, or with another size, are not
        downloaded."""
        where = f"{self.uri}/{name}"
        sizes = self._sizes(name)
        if not sizes:
            raise ArtifactError(f"{where}: there is no such folder")
        if checkpoint.MANIFEST not in sizes:
            raise ArtifactError(
                f"{where}: is not a checkpoint, because it has no {checkpoint.MANIFEST}; publish "
                "it again"
            )
        raw = self.read(f"{name}/{checkpoint.MANIFEST}")
        manifest = checkpoint.check_manifest(raw, where, Path(name).name)
        checkpoint.check_names(manifest, sizes, where)
        with self.bucket.errors(), ThreadPoolExecutor(_NUM_THREADS) as pool:
            list(pool.map(lambda file: self.fetch(f"{name}/{file}", folder / file), manifest.files))
        (folder / checkpoint.MANIFEST).write_bytes(raw)
        checkpoint.check_hashes(manifest, storage.hash_folder(folder), where)

    def _sizes(self, name: str) -> dict[str, int]:
        """Return the bytes of every object below a name. obstore rejects a path with an empty part
        or `..`."""
        with self.bucket.errors():
            entries = [entry for page in self._objects.list(name) for entry in page]
        return {
            entry["path"].removeprefix(f"{name}/"): entry["size"]
            for entry in entries
            if entry["path"] != name
        }

    def _writer(self, name: str) -> str | None:
        """Return the mark of the writer that created an object, or None if there is no object."""
        try:
            attributes: dict[str, str] = self._objects.get(name, options={"head": True}).attributes
        except FileNotFoundError:
            return None
        return attributes.get("writer", "")

    def _upload(self, path: Path, name: str) -> None:
        self._objects.put(name, path, chunk_size=_PART_BYTES, max_concurrency=1)

    def fetch(self, name: str, path: Path) -> None:
        """Copy an object to a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for piece in self._objects.get(name).stream(min_chunk_size=_PART_BYTES):
                file.write(piece)
