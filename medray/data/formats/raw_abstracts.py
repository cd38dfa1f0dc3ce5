"""A folder per class and a file per abstract: `<ID:…>`, then `Key: value` lines such as `Title:`
and `Abstract:`.

A value may span lines. After the last key of the text all lines belong to its value, since
abstracts have lines such as "Methods: …". The option `keys` names keys that begin a value
anywhere."""

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
        description="keys that make the text; other keys are metadata",
    )
    keys: tuple[str, ...] = Field(
        ("Title", "Abstract"), description="keys that begin a value even after the text"
    )
    encoding: Annotated[str, AfterValidator(dialect.check_encoding)] = Field(
        "utf-8", description="encoding, such as cp1252 or utf-16"
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
            f"{root}: the text must be under one key, not {', '.join(options.text)}; give "
            "text=[Abstract]"
        )
    refuse_existing(root)
    with storage.new_folder(root) as filling:
        for example in examples:
            where = example.where or example.id
            if len(example.labels) != 1:
                raise DataError(
                    f"{where}: has {len(example.labels)} labels; this format requires exactly one"
                )
            for what, name in (("id", example.id), ("label", example.labels[0])):
                if not _SAFE_NAME.fullmatch(name):
                    raise DataError(
                        f"{where}: {what} {name!r} cannot be a file name; use letters, digits, "
                        "blanks, '.', '_' and '-'"
                    )
            path = filling / example.labels[0] / f"{example.id}.txt"
            path.parent.mkdir(exist_ok=True)
            if path.exists():
                raise DataError(f"{where}: id {example.id!r} is used twice under one label")
            path.write_bytes(
                encode(path, _render(example, options.text[0], where), options.encoding)
            )


def check(options: Options) -> list[str]:
    return first_problem(read(options), f"{options.path}: the class folders have no .txt file")


def sniff(path: Path, encoding: str | None = None) -> Layout | None:
    """Recognize class folders. Keys are those of every file, or known names in nearly every file:
    other lines may belong to a text."""
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
    counts = Counter(name for keys_of_file in values for name in keys_of_file)
    least = {name: 0.9 if dialect.has_known_name([name]) else 1.0 for name in counts}
    names = [name for name, count in counts.items() if count >= least[name] * len(values)]
    raw: dict[str, Any] = {"name": "raw_abstracts", "path": str(path)}
    notes = [_left_out(others)] if (others := _others(path, folders)) else []
    if encoding != "utf-8":
        raw["encoding"] = encoding
        notes.append(
            f"the files are not UTF-8 and are read as {encoding}: check letters beyond a to z"
        )
    return Layout(
        raw,
        {name: [keys_of_file.get(name) for keys_of_file in values] for name in names},
        tuple(notes),
    )


def _render(example: Example, text_key: str, where: str) -> str:
    for key in example.metadata:
        if key in ("Split", text_key):
            raise DataError(
                f"{where}: metadata {key!r} has the name of another key; rename the metadata"
            )
        if not _NAME.fullmatch(key):
            raise DataError(
                f"{where}: {key!r} cannot be a key; it must start with a letter and hold only "
                "letters, digits, blanks, '_' and '-'"
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
    """Return the files per class folder, those in its subfolders included."""
    if not root.is_dir():
        raise DataError(
            f"{root}: there is no such folder; raw_abstracts needs one that holds a folder per "
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
    files_of = {}
    for folder in folders:
        if not _texts(folder):
            inner = next(
                (each.name for each in sorted(folder.iterdir()) if each.is_dir() and _texts(each)),
                None,
            )
            hint = (
                f"; its folder {inner} has some, move them up if they are of this class"
                if inner
                else ""
            )
            raise DataError(f"{folder}: this class folder has no .txt file{hint}")
        files_of[folder] = [file for file in _visible(folder) if file.suffix.lower() == ".txt"]
    return files_of


def _texts(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.iterdir() if file.suffix.lower() == ".txt" and file.is_file()
    )


def _visible(folder: Path) -> list[Path]:
    """Return the files below a folder that are not hidden."""
    below = sorted(folder.rglob("*"))
    return [
        file
        for file in below
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]


def _others(root: Path, folders: dict[Path, list[Path]]) -> list[str]:
    """Return the files besides the texts, which are not read."""
    read = {file for paths in folders.values() for file in paths}
    return [str(file.relative_to(root)) for file in _visible(root) if file not in read]


def _left_out(others: Sequence[str]) -> str:
    return (
        f"{len(others)} file(s) are not read, because they are not .txt files in class folders; "
        f"the first is {others[0]}"
    )


def parse(content: Iterable[str], path: str, label: str, options: Options) -> Example:
    """Parse a file from its lines."""
    lines_left = enumerate(content, 1)
    _, first = next(lines_left, (1, ""))
    identifier = _ID.fullmatch(first.strip())
    row_id = identifier.group(1).strip() if identifier else ""
    if not row_id:
        raise DataError(f"{path}:1: the first line must be <ID:…>")
    values: dict[str, list[str]] = {}
    for number, line in lines_left:
        match = _KEY.fullmatch(line.strip())
        if match and (
            match.group(1) in options.text + options.keys or not values.keys() >= set(options.text)
        ):
            if match.group(1) in values:
                raise DataError(f"{path}:{number}: the key of this line occurs twice in this file")
            values[match.group(1)] = [(match.group(2) or "").strip()]
        elif line.strip():
            if not values:
                raise DataError(f"{path}:{number}: expected `Key: value`")
            values[next(reversed(values))].append(line.strip())
    texts = {name: " ".join(filter(None, parts)) for name, parts in values.items()}
    for name in options.text:
        if name not in texts:
            raise DataError(
                f"{path}:1: has no key {name!r} (data.format.text) among its "
                f"{len(texts)}{nearest(name, texts)}"
            )
    metadata = {
        name: value
        for name, value in texts.items()
        if value and name not in options.text and name != "Split"
    }
    text = " ".join(filter(None, (texts[name] for name in options.text)))
    return Example(row_id, text, (label,), texts.get("Split") or None, metadata, f"{path}:1")
