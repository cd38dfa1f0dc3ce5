"""Data that lies elsewhere: pulled to this machine once, by what the other side says of its size
and time, and read from there."""

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
from medray.config.addresses import has_reference, resolved
from medray.config.schema import PluginOptions
from medray.data.meter import stage
from medray.errors import DataError
from medray.errors.redaction import redact
from medray.storage import files as storage

_ELSEWHERE = re.compile(r"(s3|gs|gcs|abfss?|hdfs|https?)://", re.IGNORECASE)
_USER = re.compile(r"://[^/]*@")
_BLOCK = 1 << 20
_PATIENCE_S = 60.0


def is_elsewhere(place: str) -> bool:
    """Whether a place is an address, or is named by reference."""
    return _ELSEWHERE.match(place) is not None or has_reference(place)


def localize(options: PluginOptions) -> PluginOptions:
    """The options with a path of this machine for each that is a URI."""
    found = {name: place for name, place in places(options).items() if is_elsewhere(place)}
    return (
        options.model_copy(update={name: str(pull(uri)) for name, uri in found.items()})
        if found
        else options
    )


def places(options: PluginOptions) -> dict[str, str]:
    """The options of a format that say where its files lie; what stands in others is never taken
    for a path."""
    named = {name: getattr(options, name, None) for name in getattr(options, "FILES", ("path",))}
    return {name: place for name, place in named.items() if place}


def pull(uri: str) -> Path:
    """A copy on this machine, under the name that it has there; made again only where the other
    side has other files now."""
    with resolved(uri) as whole:
        shown = redact(uri) if has_reference(uri) else _shown(uri)
        if not _ELSEWHERE.match(whole):
            return Path(whole)  # of this machine, named by reference
        return (
            _over_http(whole, shown)
            if whole.lower().startswith("http")
            else _from_bucket(whole, shown)
        )


def _from_bucket(uri: str, shown: str) -> Path:
    try:
        system, root = pa.fs.FileSystem.from_uri(uri)
        top = system.get_file_info(root.rstrip("/"))
        below = (
            system.get_file_info(pa.fs.FileSelector(top.path, recursive=True))
            if top.type == pa.fs.FileType.Directory
            else [top]
        )
    except (OSError, pa.ArrowException) as err:
        raise DataError(f"{shown}: cannot be opened: {_one_line(err)}") from None
    files = sorted(
        (info for info in below if info.type == pa.fs.FileType.File), key=lambda info: info.path
    )
    if not files:
        raise DataError(f"{shown}: there is no such file or folder, or nothing in it")
    folder = _folder(
        redact(uri.rstrip("/")), *(f"{info.path} {info.size} {info.mtime_ns}" for info in files)
    )
    place = folder / PurePosixPath(top.path).name
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            with (
                stage(f"pulling {shown}", sum(info.size for info in files)) as progress,
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
                            f"{shown}: {info.path} cannot be read: {_one_line(err)}"
                        ) from None
    return place


def _over_http(uri: str, shown: str) -> Path:
    try:
        name = PurePosixPath(unquote(urlsplit(uri).path)).name
        if not name:
            raise DataError(f"{shown}: names no file; http addresses are read file by file")
        with urllib.request.urlopen(_request(uri), timeout=_PATIENCE_S) as answer:
            told = [
                answer.headers.get(header, "")
                for header in ("ETag", "Last-Modified", "Content-Length")
            ]
            folder = _folder(_shown(uri), *told)
            with FileLock(folder.with_suffix(".lock")):
                if folder.is_dir() and any(told[:2]):
                    return folder / name
                shutil.rmtree(
                    folder, ignore_errors=True
                )  # nothing says whether it is still the same
                size = int(told[2]) if told[2].isdigit() else None
                with (
                    stage(f"pulling {shown}", size) as progress,
                    storage.new_folder(folder) as filling,
                ):
                    progress.unit = "bytes"
                    with (filling / name).open("wb") as target:
                        while block := answer.read(_BLOCK):
                            target.write(block)
                            progress.add(len(block))
                    if size is not None and progress.done != size:
                        raise DataError(f"{shown}: ended after {progress.done} of {size} bytes")
                return folder / name
    except DataError:
        raise
    except urllib.error.HTTPError as err:
        raise DataError(f"{shown}: the server answered {err.code} {err.reason}") from None
    except (OSError, HTTPException, ValueError) as err:
        if storage.is_full(err):
            raise
        raise DataError(f"{shown}: cannot be read: {_one_line(err)}") from None


def _request(uri: str) -> urllib.request.Request:
    """A name and a password before the host are sent as browsers and curl do, to this host
    alone."""
    parts = urlsplit(uri)
    user, sign, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl())
    if sign:
        request.add_unredirected_header(
            "Authorization", f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
        )
    return request


def _shown(uri: str) -> str:
    """Without a name and a password before the host, and without what a signed address has behind
    it."""
    return _USER.sub("://", re.split(r"[?#]", redact(uri), maxsplit=1)[0])


def _folder(*parts: str) -> Path:
    folder = environment.cache_dir() / "pulled" / storage.hash_text(parts)[:32]
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _one_line(err: Exception) -> str:
    return " ".join(str(err).split())
