"""A store in S3, or in what speaks its protocol. It asks one thing of the other side: that a conditional PUT is honoured.

Endpoint, region and credentials are boto3's own: AWS_ENDPOINT_URL, AWS_PROFILE, AWS_ACCESS_KEY_ID and the others.
"""

import logging
import shutil
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medray.errors import ArtifactError, ConfigError, UnreachableError
from medray.storage import checkpoint, files

log = logging.getLogger(__name__)
_NUM_THREADS = 8
_MARK = ".medray"
_NUM_TRIES = 5  # of a conditional PUT that met another one under way


class S3Store:
    def __init__(self, uri: str) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not bucket:
            raise ConfigError(f"{uri}: names no bucket; the form is s3://BUCKET/PREFIX")
        self.bucket, self.root = bucket, f"{prefix.strip('/')}/".lstrip("/")
        self.uri = f"s3://{bucket}/{self.root}".rstrip("/")
        self._client = self._connect()

    def __reduce__(self) -> tuple[Any, ...]:
        return S3Store, (self.uri,)  # a client cannot cross processes

    def read(self, name: str) -> bytes:
        with self._explained():
            try:
                found = self._client.get_object(Bucket=self.bucket, Key=self.root + name)
                if found["ContentLength"] > files.LARGEST_JSON:
                    raise ArtifactError(f"{self.uri}/{name}: has {found['ContentLength']} bytes, at most {files.LARGEST_JSON} are read")
                content: bytes = found["Body"].read()
            except self._client.exceptions.NoSuchKey:
                raise ArtifactError(f"{self.uri}/{name}: there is no such object") from None
        return content

    def create(self, name: str, content: bytes) -> bool:
        """Write the object only where there is none; of several writers exactly one gets True."""
        place = {"Bucket": self.bucket, "Key": self.root + name}
        writer = uuid.uuid4().hex
        with self._explained():
            for number in range(_NUM_TRIES):
                try:
                    self._client.put_object(**place, Body=content, IfNoneMatch="*", Metadata={"writer": writer})
                except self._client.exceptions.ClientError as err:
                    status = err.response["ResponseMetadata"]["HTTPStatusCode"]
                    if status == 412:
                        # boto3 repeats a PUT whose answer was lost; then the object that is there already is this one.
                        found: bool = self._client.head_object(**place)["Metadata"].get("writer") == writer
                        return found
                    if status != 409:
                        raise
                    time.sleep(0.05 * 2**number)
                else:
                    return True
        return False

    def names(self, prefix: str) -> list[str]:
        below = f"{self.root}{prefix}/" if prefix else self.root
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=below, Delimiter="/")
        with self._explained():
            found = {key[len(below) :].rstrip("/") for page in pages for key in _keys(page)}
        return sorted(found - {""})  # a console's "folder" is an empty object under the prefix itself

    def remove(self, name: str) -> None:
        with self._explained():
            self._client.delete_object(Bucket=self.bucket, Key=self.root + name)

    def leftovers(self) -> list[str]:
        return []  # an object is there whole or not at all

    def check(self) -> None:
        """One small object is written, once and for all, and cannot be written again: as versions are claimed."""
        self.names("releases")
        self.create(_MARK, b"releases of medray\n")
        if self.create(_MARK, b""):
            raise ConfigError(
                f"{self.uri}: this endpoint overwrites what a PUT with If-None-Match must leave alone: two publishers could claim one version"
            )

    def put_folder(self, name: str, folder: Path) -> None:
        """The manifest goes last: a folder without one is not there yet, and is put again."""
        manifest = folder / checkpoint.MANIFEST
        if checkpoint.MANIFEST in self.names(name):
            try:
                self.get_folder(name, anew=True)
                return
            except ArtifactError as err:
                log.warning("%s; it is mended from %s", err, folder)
            self._upload(manifest, f"{name}/{checkpoint.MANIFEST}")
        paths = [path for path in files.files(folder) if path != manifest]
        with self._explained(), ThreadPoolExecutor(_NUM_THREADS) as pool:
            list(pool.map(lambda path: self._upload(path, f"{name}/{path.relative_to(folder).as_posix()}"), paths))
        self.create(f"{name}/{checkpoint.MANIFEST}", manifest.read_bytes())
        for more in self._listed(name).keys() - {path.relative_to(folder).as_posix() for path in files.files(folder)}:
            self.remove(f"{name}/{more}")

    def get_folder(self, name: str, *, anew: bool = False) -> Path:
        """A copy in the cache, which holds nothing that is not whole and what its content id says."""
        target = files.default_cache() / name
        if anew or not target.is_dir():
            with files.new_folder(target) as filling:
                self._download(name, filling)
                if target.is_dir():  # it may have been damaged since it was made
                    files.mirror(filling, target)
        return target

    def _download(self, name: str, folder: Path) -> None:
        """The manifest first, which bounds the rest: no byte of a file that it does not name, or of another size, is fetched."""
        where = f"{self.uri}/{name}"
        sizes = self._listed(name)
        if not sizes:
            raise ArtifactError(f"{where}: there is no such folder")
        if checkpoint.MANIFEST not in sizes:
            raise ArtifactError(f"{where}: not a checkpoint, it has no {checkpoint.MANIFEST}")
        raw = self.read(f"{name}/{checkpoint.MANIFEST}")
        manifest = checkpoint.check_manifest(raw, where, Path(name).name)
        checkpoint.check_names(manifest, sizes, where)
        with self._explained(), ThreadPoolExecutor(_NUM_THREADS) as pool:
            list(pool.map(lambda file: self._fetch(f"{self.root}{name}/{file}", folder / file), manifest.files))
        (folder / checkpoint.MANIFEST).write_bytes(raw)
        checkpoint.check_hashes(manifest, files.hash_folder(folder), where)

    def _listed(self, name: str) -> dict[str, int]:
        """Bytes of every object below a name."""
        below = f"{self.root}{name}/"
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=below)
        with self._explained():
            sizes = {entry["Key"][len(below) :]: entry["Size"] for page in pages for entry in page.get("Contents", ())}
        for inside in sizes:
            if inside.startswith("/") or ".." in Path(inside).parts:
                raise ArtifactError(f"{self.uri}: the object {below + inside!r} would be written outside its folder")
        return {inside: size for inside, size in sizes.items() if not inside.endswith("/") and inside}

    def _upload(self, path: Path, name: str) -> None:
        from boto3.s3.transfer import TransferConfig

        with path.open("rb") as file:  # upload_file would hide the error that says why
            self._client.upload_fileobj(file, self.bucket, self.root + name, Config=TransferConfig(use_threads=False))

    def _fetch(self, key: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            shutil.copyfileobj(self._client.get_object(Bucket=self.bucket, Key=key)["Body"], file)

    def _connect(self) -> Any:
        try:
            import boto3.session
        except ImportError:
            raise ConfigError(f"{self.uri}: S3 needs boto3, which is not installed: pip install 'medray[s3]'") from None
        from botocore.exceptions import BotoCoreError

        try:
            # A session of its own: the module's must not be made by two threads at once.
            return boto3.session.Session().client("s3")
        except (BotoCoreError, ValueError) as err:  # ValueError: an endpoint that is no URL
            raise ConfigError(f"{self.uri}: {_one_line(err)}") from None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What boto3 raises, as one sentence that says what to do."""
        from botocore import exceptions

        try:
            yield
        except exceptions.ClientError as err:
            raise UnreachableError(f"{self.uri}: {self._refusal(err)}") from None
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
            raise ConfigError(
                f"{self.uri}: no credentials for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role"
            ) from None
        except exceptions.BotoCoreError as err:
            raise UnreachableError(f"{self.uri}: {_one_line(err)}") from None

    def _refusal(self, err: Any) -> str:
        error, status = err.response["Error"], err.response["ResponseMetadata"]["HTTPStatusCode"]
        if error["Code"] == "NoSuchBucket":
            return f"there is no bucket {self.bucket!r} at {self._client.meta.endpoint_url}"
        if status in (401, 403):
            return (
                f"{err.operation_name} is refused ({error['Code']}); "
                "the credentials must be valid and allow s3:ListBucket, s3:GetObject and s3:PutObject"
            )
        if status == 501:
            return f"{err.operation_name}: this endpoint cannot do what is needed, a PUT with If-None-Match included"
        return f"{err.operation_name} failed with {status} {error['Code']}: {error.get('Message', '')}".rstrip(": ")


def _keys(page: Any) -> Iterator[str]:
    """Objects and, where a delimiter was asked for, what stands for the objects below."""
    yield from (entry["Key"] for entry in page.get("Contents", ()))
    yield from (entry["Prefix"] for entry in page.get("CommonPrefixes", ()))


def _one_line(err: Exception) -> str:
    return " ".join(str(err).split())
