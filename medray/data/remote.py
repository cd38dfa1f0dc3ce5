"""Remote data: copied to this machine once per version (size and time at the source), and read
from the copy."""

import base64
import re
import shutil
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs
from filelock import FileLock

from medray.config import environment
from medray.config.addresses import has_reference, resolve
from medray.config.schema import PluginOptions
from medray.data.meter import stage
from medray.errors import DataError
from medray.errors.redaction import redact
from medray.storage import files as storage

_REMOTE = re.compile(r"(s3|gs|gcs|abfss?|hdfs|https?)://", re.IGNORECASE)
_USER = re.compile(r"://[^/]*@")
_BLOCK = 1 << 20
_PATIENCE_S = 60.0


def is_remote(place: str) -> bool:
    """Return whether a place is a URI or holds a reference to one."""
    return _REMOTE.match(place) is not None or has_reference(place)


def localize(options: PluginOptions) -> PluginOptions:
    """Return the options with a local path in place of each URI; the data is copied if needed."""
    remote = {name: place for name, place in places(options).items() if is_remote(place)}
    return (
        options.model_copy(update={name: str(pull(uri)) for name, uri in remote.items()})
        if remote
        else options
    )


def places(options: PluginOptions) -> dict[str, str]:
    """Return those options of a format that name files, with their values."""
    values = {name: getattr(options, name, None) for name in getattr(options, "FILES", ("path",))}
    return {name: place for name, place in values.items() if place}


def pull(uri: str) -> Path:
    """Return a local copy with the same file name. It is made again only if the source has
    changed."""
    with resolve(uri) as whole:
        address = redact(uri) if has_reference(uri) else _public_address(uri)
        if not _REMOTE.match(whole):
            return Path(whole)  # a reference to a local path
        return (
            _over_http(whole, address)
            if whole.lower().startswith("http")
            else _from_bucket(whole, address)
        )


def _from_bucket(uri: str, address: str) -> Path:
    try:
        system, root = pa.fs.FileSystem.from_uri(uri)
        top = system.get_file_info(root.rstrip("/"))
        below = (
            system.get_file_info(pa.fs.FileSelector(top.path, recursive=True))
            if top.type == pa.fs.FileType.Directory
            else [top]
        )
    except (OSError, pa.ArrowException) as err:
        raise DataError(f"{address}: cannot be opened: {_one_line(err)}") from None
    files = sorted(
        (info for info in below if info.type == pa.fs.FileType.File), key=lambda info: info.path
    )
    if not files:
        raise DataError(
            f"{address}: there is no such file or folder, or the folder is empty; correct it"
        )
    folder = _folder(
        redact(uri.rstrip("/")), *(f"{info.path} {info.size} {info.mtime_ns}" for info in files)
    )
    place = folder / PurePosixPath(top.path).name
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            with (
                stage(f"pulling {address}", sum(info.size for info in files)) as progress,
                storage.new_folder(folder) as filling,
            ):
                progress.unit = "bytes"
                for info in files:
                    copy = filling / place.name / info.path.removeprefix(top.path).lstrip("/")
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    try:
                        with (
                            system.open_input_stream(info.path, compression=None) as source,
                            copy.open("wb") as target,
                        ):
                            while block := source.read(_BLOCK):
                                target.write(block)
                                progress.add(len(block))
                    except OSError as err:
                        if storage.is_full(err):
                            raise
                        raise DataError(
                            f"{address}: {info.path} cannot be read: {_one_line(err)}"
                        ) from None
    return place


def _over_http(uri: str, address: str) -> Path:
    try:
        name = PurePosixPath(unquote(urlsplit(uri).path)).name
        if not name:
            raise DataError(f"{address}: names no file; an http address must name one file")
        with urllib.request.urlopen(_request(uri), timeout=_PATIENCE_S) as answer:
            headers = [
                answer.headers.get(header, "")
                for header in ("ETag", "Last-Modified", "Content-Length")
            ]
            folder = _folder(_public_address(uri), *headers)
            with FileLock(folder.with_suffix(".lock")):
                if folder.is_dir() and any(headers[:2]):
                    return folder / name
                # Without a tag or a time, the file may have changed.
                shutil.rmtree(folder, ignore_errors=True)
                size = int(headers[2]) if headers[2].isdigit() else None
                with (
                    stage(f"pulling {address}", size) as progress,
                    storage.new_folder(folder) as filling,
                ):
                    progress.unit = "bytes"
                    with (filling / name).open("wb") as target:
                        while block := answer.read(_BLOCK):
                            target.write(block)
                            progress.add(len(block))
                    if size is not None and progress.count != size:
                        raise DataError(f"{address}: ended after {progress.count} of {size} bytes")
                return folder / name
    except DataError:
        raise
    except urllib.error.HTTPError as err:
        raise DataError(f"{address}: the server answered {err.code} {err.reason}") from None
    except (OSError, HTTPException, ValueError) as err:
        if storage.is_full(err):
            raise
        raise DataError(f"{address}: cannot be read: {_one_line(err)}") from None


def _request(uri: str) -> urllib.request.Request:
    """Return a request that sends a user name and password from the address as basic
    authentication, to this host only, as browsers and curl do."""
    parts = urlsplit(uri)
    user, sign, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl())
    if sign:
        request.add_unredirected_header(
            "Authorization", f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
        )
    return request


def _public_address(uri: str) -> str:
    """Return an address without user name, password and query, which may hold a signature."""
    return _USER.sub("://", re.split(r"[?#]", redact(uri), maxsplit=1)[0])


def _folder(*parts: str) -> Path:
    folder = environment.cache_dir() / "pulled" / storage.hash_text(parts)[:32]
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _one_line(err: Exception) -> str:
    return " ".join(str(err).split())
