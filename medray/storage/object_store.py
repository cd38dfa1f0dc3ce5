"""A store in S3, Google Cloud Storage or Azure, by obstore. The endpoint must honor conditional
PUTs.

S3's endpoint, region and credentials come from boto3's settings, such as AWS_ENDPOINT_URL,
AWS_PROFILE and AWS_ACCESS_KEY_ID. The other two use obstore's, such as
GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY."""

import logging
import re
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from medray.config import environment
from medray.errors import ArtifactError, ConfigError, MedrayError, UnreachableError
from medray.storage import checkpoint
from medray.storage import files as storage

log = logging.getLogger(__name__)
_NUM_THREADS = 8
_MARK = ".medray"
_NUM_TRIES = 5  # of a conditional PUT that met another one, or whose reply was lost
_PART_BYTES = 8 << 20  # a file is uploaded in at most 10,000 parts
# botocore renews its credentials at least ten minutes before they end.
_CREDENTIALS_LIVE = timedelta(minutes=5)
_REPLY = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([^<]+)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
_REQUEST = re.compile(r"performing (\w+) (\w+://[^/\s?]+)")
_METADATA_SERVICE = re.compile(r"//(169\.254\.169\.254|metadata)\b")
_BAD_PATH = re.compile(r"invalid path: .*?Path \"([^\"]*)\"")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")


class Provider(NamedTuple):
    """A provider of object storage, with the words for messages about it."""

    name: str
    extra: str
    bucket: str
    credentials: str
    permissions: str


PROVIDERS = {
    "s3": Provider(
        "S3",
        "s3",
        "bucket",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role",
        "s3:ListBucket, s3:GetObject and s3:PutObject",
    ),
    "gs": Provider(
        "Google Cloud Storage",
        "cloud",
        "bucket",
        "set GOOGLE_APPLICATION_CREDENTIALS, or give the machine a service account",
        "storage.objects.list, storage.objects.get and storage.objects.create",
    ),
    "az": Provider(
        "Azure",
        "cloud",
        "container",
        "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or give the machine an "
        "identity",
        "listing, reading and writing blobs (Storage Blob Data Contributor)",
    ),
}


class ObjectStore:
    def __init__(self, uri: str) -> None:
        scheme, _, place = uri.partition("://")
        self.bucket, _, prefix = place.partition("/")
        self.provider = PROVIDERS[scheme]
        if not self.bucket:
            kind = self.provider.bucket
            raise ConfigError(f"{uri}: names no {kind}; write {scheme}://{kind.upper()}/PREFIX")
        self.root = f"{prefix.strip('/')}/".lstrip("/")
        self.uri = f"{scheme}://{self.bucket}/{self.root}".rstrip("/")
        self._objects = self._connect(scheme)

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectStore, (self.uri,)  # a client cannot cross processes

    def read(self, name: str) -> bytes:
        with self._as_our_errors():
            try:
                reply = self._objects.get(name)
            except FileNotFoundError as err:
                if _code(err) in _NO_BUCKET:
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
        with self._as_our_errors():
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
                    if number + 1 == _NUM_TRIES or not _is_answer_lost(err):
                        raise
                time.sleep(0.05 * 2**number)  # another PUT may be under way
        return False

    def names(self, prefix: str) -> list[str]:
        with self._as_our_errors():
            listing = self._objects.list_with_delimiter(prefix or None)
        paths = [*listing["common_prefixes"], *(entry["path"] for entry in listing["objects"])]
        below = f"{prefix}/" if prefix else ""
        return sorted({path.removeprefix(below) for path in paths if path != prefix} - {""})

    def remove(self, name: str) -> None:
        with self._as_our_errors():
            try:
                self._objects.delete(name)
            except FileNotFoundError as err:
                if _code(err) in _NO_BUCKET:
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
        with self._as_our_errors(), ThreadPoolExecutor(_NUM_THREADS) as pool:
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
        with self._as_our_errors(), ThreadPoolExecutor(_NUM_THREADS) as pool:
            list(pool.map(lambda file: self.fetch(f"{name}/{file}", folder / file), manifest.files))
        (folder / checkpoint.MANIFEST).write_bytes(raw)
        checkpoint.check_hashes(manifest, storage.hash_folder(folder), where)

    def _sizes(self, name: str) -> dict[str, int]:
        """Return the bytes of every object below a name. obstore rejects a path with an empty part
        or `..`."""
        with self._as_our_errors():
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

    def _connect(self, scheme: str) -> Any:
        try:
            from obstore.exceptions import BaseError
            from obstore.store import AzureStore, GCSStore, S3Store

            s3 = _s3_settings(self.uri, self.provider) if scheme == "s3" else {}
        except ImportError as err:
            raise ConfigError(
                f"{self.uri}: {self.provider.name} needs {err.name}, which is not installed: pip "
                f"install 'medray[{self.provider.extra}]'"
            ) from None
        settings: dict[str, Any] = {
            "prefix": self.root or None,
            # A request may last a day, since a file may be large; a silent connection may not.
            "client_options": {
                "allow_http": True,
                "connect_timeout": "10s",
                "read_timeout": "60s",
                "timeout": "1day",
            },
            "retry_config": {"max_retries": s3.pop("max_retries", 4)},
        }
        try:
            return {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[scheme](
                self.bucket, **settings, **s3
            )
        except (BaseError, ValueError) as err:
            raise ConfigError(
                f"{self.uri}: {_one_line(err)}; {self.provider.credentials}"
            ) from None

    @contextmanager
    def _as_our_errors(self) -> Iterator[None]:
        """Turn errors of obstore in the block into one of ours, with a message that says what to
        do."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError) as err:
            raise self._our_error(err) from None

    def _our_error(self, err: Exception) -> MedrayError:
        text, code = str(err), _code(err)
        request, reply = _REQUEST.search(text), _REPLY.search(text)
        method, endpoint = request.groups() if request else ("a request", "the endpoint")
        status = int(reply.group(1)) if reply else None
        if _METADATA_SERVICE.search(endpoint):
            return ConfigError(
                f"{self.uri}: no credentials for {self.provider.name}: {self.provider.credentials}"
            )
        if code in _NO_BUCKET:
            problem = f"there is no {self.provider.bucket} {self.bucket!r} at {endpoint}"
        elif status in (401, 403):
            problem = (
                f"{method} is refused ({code or status}); the credentials must be valid and allow "
                f"{self.provider.permissions}"
            )
        elif status == 501:
            feature = "a PUT with If-None-Match" if method == "PUT" else f"this {method}"
            problem = f"{method} failed: this endpoint does not support {feature}, which is needed"
        elif status is not None:
            message = _MESSAGE.search(text)
            problem = (
                f"{method} failed with {status} {code}: {message.group(1) if message else ''}"
            ).rstrip(": ")
        elif path := _BAD_PATH.search(text):
            problem = f"the object {path.group(1)!r} has a path outside its folder; remove it"
        elif "kind: Connect" in text:
            problem = f"Could not connect to the endpoint URL {endpoint}"
        else:
            problem = _one_line(err)
        return UnreachableError(f"{self.uri}: {problem}")


def _s3_settings(uri: str, provider: Provider) -> dict[str, Any]:
    """Return endpoint, region, credentials and number of retries from boto3's settings."""
    import botocore.session
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        session = botocore.session.Session()  # two threads must not create a shared session
        endpoint = session.create_client("s3").meta.endpoint_url
        credentials = session.get_credentials()
    except (BotoCoreError, ValueError) as err:  # ValueError: the endpoint is not a URL
        raise ConfigError(f"{uri}: {' '.join(str(err).split())}") from None
    if credentials is None:
        raise ConfigError(f"{uri}: no credentials for S3: {provider.credentials}")
    return {
        "endpoint": endpoint,
        "region": session.get_config_variable("region") or "us-east-1",
        "credential_provider": Boto3CredentialProvider(session, ttl=_CREDENTIALS_LIVE),
        "disable_bulk_delete": True,  # some services lack it
        "max_retries": int(session.get_config_variable("max_attempts") or 5) - 1,
    }


def _code(err: Exception) -> str:
    """Return the service's error code, or an empty text."""
    match = _CODE.search(str(err))
    return match.group(1) if match else ""


def _is_answer_lost(err: Exception) -> bool:
    """Return whether the request was sent and its result is unknown."""
    return _REPLY.search(str(err)) is None and "kind: Connect" not in str(err)


def _one_line(err: Exception) -> str:
    """Return obstore's message without its debugging lines, and without queries of URLs, which may
    hold a signature."""
    return re.sub(r"\?\S+", "", " ".join(str(err).partition("\n\nDebug source:")[0].split()))
