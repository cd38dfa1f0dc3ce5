"""Reads the rows of a data set and checks them. Small data sets stay in memory; large ones are
written to the cache once and mapped from there.

The key of the cache holds the options and the names, sizes and times of the files, so a changed
file is read again."""

import json
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from medray.config import environment
from medray.config.schema import PluginOptions
from medray.data import examples as example_rows
from medray.data.examples import Examples
from medray.data.formats.base.protocol import find_format, is_left_out, read
from medray.data.meter import Meter, stage
from medray.data.remote import localize, places
from medray.errors import DataError
from medray.storage import checkpoint
from medray.storage import files as storage
from medray.types import Example

log = logging.getLogger(__name__)
LARGE_BYTES = 64 << 20  # the size of files from which rows are kept on disk
_PACKED_FILE = re.compile(r"\.(parquet|arrow) \d+ \d+$", re.IGNORECASE)
_ROWS, _ABOUT = "rows.arrow", "about.json"


@dataclass(frozen=True)
class Stamp:
    """The identity of a data set on disk, without reading its rows."""

    num_bytes: int
    is_packed: bool  # compressed: the number of rows cannot be estimated from the bytes
    parts: tuple[str, ...]  # two data sets with the same parts have the same rows


@dataclass(frozen=True)
class ExampleSet:
    """The rows of a data set before its split, and the ids of rows that were left out."""

    examples: Sequence[Example]
    empty_ids: Sequence[str]  # rows without a text
    folder: Path | None = None  # of the cache, if the rows are kept on disk
    unlabelled_ids: Sequence[str] = ()  # rows that drop_unlabelled leaves out


@dataclass
class RowChecker:
    """Yields the rows that have a text, and raises DataError for a repeated id."""

    options: PluginOptions
    progress: Meter
    num_bytes: int | None = None
    num_characters: int = 0
    ids: set[str] = field(default_factory=set)
    empty_ids: list[str] = field(default_factory=list)
    unlabelled_ids: list[str] = field(default_factory=list)

    def rows(self) -> Iterator[Example]:
        for example in read(self.options):
            if example.id in self.ids:
                first = next(other.where for other in read(self.options) if other.id == example.id)
                raise DataError(
                    f"{example.where}: id {example.id!r} is used twice, first at {first}"
                )
            self.ids.add(example.id)
            self.num_characters += len(example.text) + sum(map(len, example.metadata.values()))
            if self.num_bytes and len(self.ids) % 1000 == 0:
                # An estimate, from the bytes of the rows so far.
                self.progress.total = max(
                    len(self.ids), self.num_bytes * len(self.ids) // max(self.num_characters, 1)
                )
            self.progress.add(1)
            if not example.text.strip():
                self.empty_ids.append(example.id)
            elif is_left_out(example, self.options):
                self.unlabelled_ids.append(example.id)
            else:
                yield example


def load(options: PluginOptions) -> ExampleSet:
    options = localize(options)
    stamp = stamp_of(options)
    if stamp.num_bytes < LARGE_BYTES:
        checker = RowChecker(options, Meter.idle())
        source = ExampleSet(
            list(checker.rows()), checker.empty_ids, unlabelled_ids=checker.unlabelled_ids
        )
    else:
        source = _from_disk(options, stamp)
    if source.empty_ids:
        log.warning("%d row(s) have an empty text and are set aside", len(source.empty_ids))
    if source.unlabelled_ids:
        log.warning("%d row(s) have no label and are left out", len(source.unlabelled_ids))
    if not source.examples:
        raise DataError(
            "data.format: no row has a text" + (" and a label" if source.unlabelled_ids else "")
        )
    return source


def stamp_of(options: PluginOptions) -> Stamp:
    """Return the stamp from the files of the options, or from the format's own `stamp`."""
    own = getattr(find_format(options.name), "stamp", None)
    num_bytes, parts = own(options) if own else _stamp_of_files(options)
    is_packed = own is not None or any(_PACKED_FILE.search(part) for part in parts)
    return Stamp(
        num_bytes, is_packed, (checkpoint.versions()["medray"], options.model_dump_json(), *parts)
    )


def _stamp_of_files(options: PluginOptions) -> tuple[int, list[str]]:
    paths = [path for path in map(Path, places(options).values()) if path.exists()]
    files = [file for path in paths for file in (storage.files(path) if path.is_dir() else [path])]
    states = [file.stat() for file in files]
    parts = [
        f"{file.absolute()} {state.st_size} {state.st_mtime_ns}"
        for file, state in zip(files, states, strict=True)
    ]
    return sum(state.st_size for state in states), parts


def _from_disk(options: PluginOptions, stamp: Stamp) -> ExampleSet:
    folder = environment.cache_dir() / "rows" / storage.hash_text(stamp.parts)[:32]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if (folder / _ABOUT).exists():
            log.info("reading: the rows come from the cache, %s", folder)
        else:
            for leftover in folder.parent.glob(f".{folder.name}.*"):  # of a killed run
                shutil.rmtree(leftover)
            with stage("reading") as progress, storage.new_folder(folder) as filling:
                checker = RowChecker(
                    options, progress, None if stamp.is_packed else stamp.num_bytes
                )
                example_rows.write(checker.rows(), filling / _ROWS)
                (filling / _ABOUT).write_text(
                    json.dumps({"empty": checker.empty_ids, "unlabelled": checker.unlabelled_ids}),
                    encoding="utf-8",
                )
    about = json.loads((folder / _ABOUT).read_bytes())
    return ExampleSet(
        Examples.open(folder / _ROWS), about["empty"], folder, about.get("unlabelled", ())
    )
