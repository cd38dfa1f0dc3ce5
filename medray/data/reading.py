"""Rows as they come from a format, checked and kept: in memory, or where the files are large once
in the cache, from which they are mapped.

The cache is addressed by the options and by names, sizes and times of the files, so what was
changed is read anew."""

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
LARGE_BYTES = 64 << 20  # of files; from here on rows are kept on disk
_PACKED = re.compile(r"\.(parquet|arrow) \d+ \d+$", re.IGNORECASE)
_ROWS, _ABOUT = "rows.arrow", "about.json"


@dataclass(frozen=True)
class Stamp:
    """What a data set is on disk, told without reading it."""

    num_bytes: int
    is_packed: bool  # so that bytes do not tell how many rows there will be
    parts: tuple[str, ...]  # two data sets with the same parts have the same rows


@dataclass(frozen=True)
class ExampleSet:
    examples: Sequence[Example]
    empty: Sequence[str]  # ids of rows without a text
    folder: Path | None = None  # of what can be made again, where rows are kept on disk
    unlabelled: Sequence[str] = ()  # ids of rows that drop_unlabelled leaves out


@dataclass
class _Checked:
    """Rows with a text, one for each id."""

    options: PluginOptions
    progress: Meter
    num_bytes: int | None = None
    num_characters: int = 0
    ids: set[str] = field(default_factory=set)
    empty: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)

    def rows(self) -> Iterator[Example]:
        for example in read(self.options):
            if example.id in self.ids:
                first = next(other.where for other in read(self.options) if other.id == example.id)
                raise DataError(f"{example.where}: id {example.id!r} was used before, at {first}")
            self.ids.add(example.id)
            self.num_characters += len(example.text) + sum(map(len, example.metadata.values()))
            if self.num_bytes and len(self.ids) % 1000 == 0:
                self.progress.total = max(
                    len(self.ids), self.num_bytes * len(self.ids) // max(self.num_characters, 1)
                )  # a guess
            self.progress.add(1)
            if not example.text.strip():
                self.empty.append(example.id)
            elif is_left_out(example, self.options):
                self.unlabelled.append(example.id)
            else:
                yield example


def load(options: PluginOptions) -> ExampleSet:
    options = localize(options)
    stamp = stamp_of(options)
    if stamp.num_bytes < LARGE_BYTES:
        checked = _Checked(options, Meter.idle())
        held = ExampleSet(list(checked.rows()), checked.empty, unlabelled=checked.unlabelled)
    else:
        held = _from_disk(options, stamp)
    if held.empty:
        log.warning("%d row(s) have an empty text and are set aside", len(held.empty))
    if held.unlabelled:
        log.warning("%d row(s) have no label and are left out", len(held.unlabelled))
    if not held.examples:
        raise DataError(
            "the data has no row with a text" + (" and a label" if held.unlabelled else "")
        )
    return held


def stamp_of(options: PluginOptions) -> Stamp:
    """A format whose rows are no files of its options says itself what they are."""
    own = getattr(find_format(options.name), "stamp", None)
    num_bytes, parts = own(options) if own else _stamp_of_files(options)
    is_packed = own is not None or any(_PACKED.search(part) for part in parts)
    return Stamp(
        num_bytes, is_packed, (checkpoint.versions()["medray"], options.model_dump_json(), *parts)
    )


def _stamp_of_files(options: PluginOptions) -> tuple[int, list[str]]:
    named = [path for path in map(Path, places(options).values()) if path.exists()]
    files = [file for path in named for file in (storage.files(path) if path.is_dir() else [path])]
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
            log.info("reading: the rows are in the cache, %s", folder)
        else:
            for left in folder.parent.glob(f".{folder.name}.*"):  # by a run that was killed
                shutil.rmtree(left)
            with stage("reading") as progress, storage.new_folder(folder) as filling:
                checked = _Checked(options, progress, None if stamp.is_packed else stamp.num_bytes)
                example_rows.write(checked.rows(), filling / _ROWS)
                (filling / _ABOUT).write_text(
                    json.dumps({"empty": checked.empty, "unlabelled": checked.unlabelled}),
                    encoding="utf-8",
                )
    about = json.loads((folder / _ABOUT).read_bytes())
    return ExampleSet(
        Examples.open(folder / _ROWS), about["empty"], folder, about.get("unlabelled", ())
    )
