"""A folder per class, a file per abstract: `<ID:…>`, then `Key: value` lines such as `Title:` and
`Abstract:`.

A value may run over lines. Once every key of the text was seen, what follows belongs to the last
one, since abstracts have lines of their own such as "Methods: …"; keys that open a value wherever
they stand are named in `keys`."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from medray.data.formats.base.parsing import (
    check_label,
    encode,
    first_problem,
    guess_encoding,
    lines,
    refuse_existing,
)
from medray.data.formats.base.protocol import FormatOptions, Layout
from medray.errors import DataError, nearest
from medray.storage import files as storage
from medray.text import dialect
from medray.types import Example

log = logging.getLogger(__name__)
_ID = re.compile(r"<ID:([^>]*)>")
_NAME = re.compile(r"[A-Za-z][\w -]{0,40}")
_KEY = re.compile(rf"({_NAME.pattern}):(?:\s+(.*))?")
_SAFE_NAME = re.compile(r"\w[\w. -]{0,127}")


class Options(FormatOptions):
    name: Literal["raw_abstracts"]
    text: tuple[str, ...] = Field(
        ("Title", "Abstract"),
        min_length=1,
        description="keys that make the text; the others are metadata",
    )
    keys: tuple[str, ...] = Field(
        ("Title", "Abstract"), description="keys that open a value even after the text"
    )
    encoding: Annotated[str, AfterValidator(dialect.check_encoding)] = Field(
        "utf-8", description="such as cp1252 or utf-16"
    )


def read(options: Options) -> Iterator[Example]:
    root = Path(options.path)
    folders = _class_folders(root)
    if others := _others(root, folders):
        log.warning("%s: %s", root, _left_out(others))
    for folder, paths in folders.items():
        check_label(folder.name, options.labels, str(folder))
        for path in paths:
            yield parse(
                lines(path, encoding=options.encoding, newline=""), str(path), folder.name, options
            )


def write(examples: Iterable[Example], options: Options) -> None:
    root = Path(options.path)
    if len(options.text) != 1:
        raise DataError(
            f"{root}: a text is written under one key; give text=[Abstract] instead of "
            f"{', '.join(options.text)}"
        )
    refuse_existing(root)
    with storage.new_folder(root) as filling:
        for example in examples:
            where = example.where or example.id
            if len(example.labels) != 1:
                raise DataError(
                    f"{where}: has {len(example.labels)} labels; a folder per class holds exactly "
                    "one"
                )
            for what, name in (("id", example.id), ("label", example.labels[0])):
                if not _SAFE_NAME.fullmatch(name):
                    raise DataError(
                        f"{where}: {what} {name!r} cannot be a file name; letters, digits, "
                        "blanks, '.', '_' and '-' can"
                    )
            path = filling / example.labels[0] / f"{example.id}.txt"
            path.parent.mkdir(exist_ok=True)
            if path.exists():
                raise DataError(f"{where}: id {example.id!r} is used twice under one label")
            path.write_bytes(
                encode(path, _render(example, options.text[0], where), options.encoding)
            )


def check(options: Options) -> list[str]:
    return first_problem(read(options), f"{options.path}: its class folders hold no .txt file")


def sniff(path: Path, encoding: str | None = None) -> Layout | None:
    """Only the keys that every file has, or nearly every one if they are known: the others may be
    lines of a text."""
    if not path.is_dir() or not any(
        folder.is_dir() and _texts(folder) for folder in path.iterdir()
    ):
        return None
    folders = _class_folders(path)
    files = [file for paths in folders.values() for file in paths]
    encoding = encoding or guess_encoding(*files)
    values = [
        {
            match.group(1): match.group(2) or ""
            for line in lines(file, encoding=encoding, newline="")
            if (match := _KEY.fullmatch(line.strip()))
        }
        for file in files
    ]
    counts = Counter(name for found in values for name in found)
    least = {name: 0.9 if dialect.has_known_name([name]) else 1.0 for name in counts}
    names = [name for name, count in counts.items() if count >= least[name] * len(values)]
    raw: dict[str, Any] = {"name": "raw_abstracts", "path": str(path)}
    notes = [_left_out(others)] if (others := _others(path, folders)) else []
    if encoding != "utf-8":
        raw["encoding"] = encoding
        notes.append(
            f"the files are no UTF-8 and are read as {encoding}: see that letters beyond a to z "
            "are right"
        )
    return Layout(
        raw, {name: [found.get(name) for found in values] for name in names}, tuple(notes)
    )


def _render(example: Example, text_key: str, where: str) -> str:
    for key in example.metadata:
        if key in ("Split", text_key):
            raise DataError(
                f"{where}: metadata {key!r} has the name of another key; name that one otherwise"
            )
        if not _NAME.fullmatch(key):
            raise DataError(
                f"{where}: {key!r} cannot be a key; it must start with a letter and hold letters, "
                "digits, blanks, '_' and '-'"
            )
    parts = {
        **({"Split": example.split} if example.split else {}),
        **example.metadata,
        text_key: example.text,
    }
    return f"<ID:{example.id}>\n" + "".join(
        f"{key}: {' '.join(value.split())}\n" for key, value in parts.items()
    )


def _class_folders(root: Path) -> dict[Path, list[Path]]:
    """The files of each class, those in folders below its own as well."""
    if not root.is_dir():
        raise DataError(
            f"{root}: there is no such folder; raw_abstracts reads a folder with one folder per "
            "class"
        )
    folders = sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if len(folders) < 2:
        raise DataError(
            f"{root}: needs a folder per class, at least two; found "
            f"{', '.join(folder.name for folder in folders) or 'none'}"
        )
    found = {}
    for folder in folders:
        if not _texts(folder):
            inner = next(
                (each.name for each in sorted(folder.iterdir()) if each.is_dir() and _texts(each)),
                None,
            )
            hint = (
                f"; its folder {inner} has some: move them up if they are of this class"
                if inner
                else ""
            )
            raise DataError(f"{folder}: a class folder without a .txt file{hint}")
        found[folder] = [file for file in _visible(folder) if file.suffix.lower() == ".txt"]
    return found


def _texts(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.iterdir() if file.suffix.lower() == ".txt" and file.is_file()
    )


def _visible(folder: Path) -> list[Path]:
    """Files below a folder, but for hidden ones."""
    below = sorted(folder.rglob("*"))
    return [
        file
        for file in below
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]


def _others(root: Path, folders: dict[Path, list[Path]]) -> list[str]:
    """What stands beside the texts and is not read."""
    read = {file for paths in folders.values() for file in paths}
    return [str(file.relative_to(root)) for file in _visible(root) if file not in read]


def _left_out(others: Sequence[str]) -> str:
    return (
        f"{len(others)} file(s) are not read, since only .txt files in class folders are; the "
        f"first is {others[0]}"
    )


def parse(content: Iterable[str], path: str, label: str, options: Options) -> Example:
    """One file, from its lines."""
    numbered = enumerate(content, 1)
    _, first = next(numbered, (1, ""))
    identifier = _ID.fullmatch(first.strip())
    row_id = identifier.group(1).strip() if identifier else ""
    if not row_id:
        raise DataError(f"{path}:1: the first line must be <ID:…>")
    values: dict[str, list[str]] = {}
    for number, line in numbered:
        match = _KEY.fullmatch(line.strip())
        if match and (
            match.group(1) in options.text + options.keys or not values.keys() >= set(options.text)
        ):
            if match.group(1) in values:
                raise DataError(f"{path}:{number}: the key of this line stands twice in this file")
            values[match.group(1)] = [(match.group(2) or "").strip()]
        elif line.strip():
            if not values:
                raise DataError(f"{path}:{number}: expected `Key: value`")
            values[next(reversed(values))].append(line.strip())
    joined = {name: " ".join(filter(None, parts)) for name, parts in values.items()}
    for name in options.text:
        if name not in joined:
            raise DataError(
                f"{path}:1: has no key {name!r} (data.format.text) among its "
                f"{len(joined)}{nearest(name, joined)}"
            )
    metadata = {
        name: value
        for name, value in joined.items()
        if value and name not in options.text and name != "Split"
    }
    text = " ".join(filter(None, (joined[name] for name in options.text)))
    return Example(row_id, text, (label,), joined.get("Split") or None, metadata, f"{path}:1")
