"""What formats share: reading lines, CSV and JSON, and the messages about mistakes in them."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from medray.data.formats.base.protocol import Layout
from medray.errors import DataError, nearest_file, suggest
from medray.storage import files
from medray.text import dialect
from medray.text.csv_text import MOST_CHARACTERS, CsvRow, read_rows
from medray.types import Example

_MAX_CELLS = 1_000_000  # of a table whose cells are nearly all empty


def check_label(label: str, labels: tuple[str, ...] | None, where: str) -> str:
    if not label:
        raise DataError(
            f"{where}: the label is empty; fill it in, or set drop_unlabelled if the format has it"
        )
    if labels is not None and label not in labels:
        raise DataError(
            f"{where}: label {label!r:.60} is not one of the labels; {suggest(label, labels)}"
        )
    return label


def check_id(row_id: str, where: str) -> str:
    if not row_id:
        raise DataError(f"{where}: the id is empty")
    return row_id


def lines(
    path: Path,
    most: int = MOST_CHARACTERS,
    *,
    encoding: str | None = None,
    newline: Literal["", "\n"] = "\n",
) -> Iterator[str]:
    """Yield the lines of a text file with their line ends, without a byte order mark. Bytes that
    cannot be decoded raise DataError with their line.

    `encoding` is None for formats without that option. With the newline "" a carriage return ends
    a line too."""
    name = encoding or "utf-8"
    try:
        with path.open(encoding=dialect.codec(name), newline=newline) as file:
            number = 0
            while line := file.readline(most):
                number += 1
                if len(line) >= most:
                    raise DataError(
                        f"{path}:{number}: the line is longer than {most} characters; a row must "
                        "be shorter"
                    )
                yield line
    except UnicodeError:
        raise DataError(
            f"{path}:{_undecodable(path, name, newline, most)}{_remedy(path, encoding)}"
        ) from None
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DataError(f"{path}: no such file{nearest_file(path)}") from None


def _undecodable(path: Path, encoding: str, newline: str, most: int) -> str:
    """Return line and message for the first bytes that cannot be decoded. The decoder reads ahead,
    so they may be in a later line than the one that failed."""
    number, place = 0, ""
    with (
        contextlib.suppress(UnicodeError),
        path.open(
            encoding=dialect.codec(encoding), errors="surrogateescape", newline=newline
        ) as file,
    ):
        while line := file.readline(most):
            number += 1
            if match := dialect.ESCAPED_BYTES.search(line):
                place = (
                    f" (character {match.start() + 1} of the line is the byte "
                    f"0x{ord(match.group()) & 0xFF:02x})"
                )
                break
    return f"{number if place else number + 1}: not {encoding.upper()} text{place}"


def _remedy(path: Path, encoding: str | None) -> str:
    head = next(chunks(path), b"") if path.is_file() else b""
    if dialect.is_spreadsheet(path.name, head):
        return f"; {dialect.SAVE_AS_CSV}"
    likely = guess_encoding(path) if head else "utf-8"
    if encoding is None or likely == encoding:
        return "; save it as UTF-8"
    return f"; data.format.encoding {likely} may read it, or save it as UTF-8"


def chunks(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(size):
            yield chunk


def guess_encoding(*paths: Path) -> str:
    return dialect.guess_encoding(chunk for path in paths for chunk in chunks(path))


def csv_rows(path: Path, delimiter: str, encoding: str | None = None) -> Iterator[CsvRow]:
    """Yield the rows of a delimited file; raise DataError at the first that cannot be read."""
    for row in read_rows(lines(path, encoding=encoding, newline=""), delimiter):
        if row.reason:
            raise DataError(
                f"{path}:{row.line}: {row.reason}; repair it (a quote inside a field is written "
                "twice), or write the rows as JSON lines"
            )
        yield row


def table_delimiter(path: Path, delimiter: str | None, encoding: str | None = None) -> str:
    """Return the delimiter of a file: the option, or what a first line `sep=;` names, or that of
    the file's ending, or the only one in the first line."""
    usual = dialect.USUAL_DELIMITERS.get(path.suffix.lower())
    if delimiter or not path.is_file():
        return delimiter or usual or ","
    first = next(lines(path, encoding=encoding, newline=""), "")
    delimiter_of_file = dialect.declared_delimiter(first) or usual
    if delimiter_of_file:
        return delimiter_of_file
    candidates = [each for each in dialect.DELIMITERS if each in first]
    if len(candidates) > 1:
        raise DataError(
            f"{path}:1: the delimiter may be any of {candidates}; set data.format.delimiter"
        )
    return candidates[0] if candidates else ","


def delimiter_hint(columns: Sequence[str], delimiter: str) -> str:
    """Return a hint if the header has one column that another delimiter would split, else an empty
    text."""
    likely = dialect.likely_delimiter(columns[0], "") if len(columns) == 1 else None
    return (
        f"; the first line has no {delimiter!r}: set data.format.delimiter to {likely!r}"
        if likely not in (None, delimiter)
        else ""
    )


def json_object(line: str, where: str) -> dict[str, Any]:
    """Parse a line of a file of JSON objects."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as err:
        raise DataError(f"{where}: not valid JSON: {err.msg} at character {err.pos + 1}") from None
    except RecursionError:
        raise DataError(f"{where}: nested too deeply") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be a JSON object, found {type(row).__name__}")
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: holds half of a surrogate pair, which is not a character"
        ) from None
    return row


def json_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield every row of a file of JSON lines with its line number."""
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            yield number, json_object(line, f"{path}:{number}")


def json_rows(path: Path) -> list[dict[str, Any]] | None:
    """Return every row of a file of JSON lines, or None if it is not such a file."""
    if not path.is_file() or not next(
        (line for line in lines(path) if line.strip()), ""
    ).lstrip().startswith("{"):
        return None
    try:
        return [row for _, row in json_objects(path)]
    except DataError:
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            raise
        return None  # such as one JSON document over many lines


def json_layout(name: str, path: Path, rows: Sequence[Mapping[str, Any]]) -> "Layout":
    return Layout({"name": name, "path": str(path)}, columns_of(rows, path))


def columns_of(rows: Sequence[Mapping[str, Any]], where: str | Path) -> dict[str, list[Any]]:
    """Return the values of each column, with None where a row lacks the column."""
    names = dict.fromkeys(column for row in rows for column in row)
    if len(names) * len(rows) > max(_MAX_CELLS, 10 * sum(map(len, rows))):
        raise DataError(
            f"{where}: {len(rows)} rows have {len(names)} different names; the rows of a table "
            "must share their names"
        )
    return {column: [row.get(column) for row in rows] for column in names}


def json_line(row: dict[str, Any], example: Example, split: str | None) -> str:
    """Return a row as a line of JSON, with the example's side and metadata added."""
    if example.split:
        row = {**row, split or "split": example.split}
    if repeated_names := sorted(row.keys() & example.metadata.keys()):
        raise DataError(
            f"{example.where or example.id}: metadata {repeated_names[0]!r} has the name of "
            "another field; rename the metadata"
        )
    return json.dumps(row | dict(example.metadata), ensure_ascii=False) + "\n"


def is_pubmedqa(row: Mapping[str, Any]) -> bool:
    """Return whether a row has the fields of the Hub's PubMedQA, or is the official file: an object
    of records."""
    if {"pubid", "question", "final_decision"} <= {name.lower() for name in row}:
        return True
    return bool(row) and all(
        isinstance(each, dict) and {"QUESTION", "final_decision"} <= each.keys()
        for each in row.values()
    )


def is_instructions(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether every row has an instruction and a response, or messages."""
    all_rows = list(rows)
    return bool(all_rows) and all(
        {"instruction", "response"} <= row.keys() or isinstance(row.get("messages"), list)
        for row in all_rows
    )


def holds_mentions(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether rows are annotated texts: a field holds a list of objects with start and
    end."""
    lists = (value for row in rows for value in row.values() if isinstance(value, list))
    return any(
        isinstance(item, dict) and {"start", "end"} <= item.keys()
        for value in lists
        for item in value
    )


def missing_file(path: str, option: str = "path") -> list[str]:
    if Path(path).is_file():
        return []
    return [f"data.format.{option}: {path}: no such file{nearest_file(path)}"]


def first_problem(rows: Iterator[Example], nothing: str) -> list[str]:
    """Return the error of the first row, or `nothing` if there is no row."""
    try:
        return [] if next(rows, None) else [nothing]
    except DataError as err:
        return [str(err)]


def missing_columns(where: str, names: dict[str, str], columns: list[str]) -> list[str]:
    """Return a message for each option that names a missing column; `names` maps options to
    columns."""
    return [
        f"{where}: data.format.{option} names {name!r}; {suggest(name, columns)}"
        for option, name in names.items()
        if name not in columns
    ]


def as_text(value: Any) -> str:
    """Return a value of metadata as text; what is not text becomes JSON."""
    return (
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    )


def refuse_existing(path: Path) -> None:
    if path.exists():
        raise DataError(f"{path}: exists already; choose another path")


def publish(path: Path, content: str, encoding: str = "utf-8") -> None:
    """Write a new file in one step; raise DataError if it exists."""
    if not files.create(path, encode(path, content, encoding)):
        refuse_existing(path)


def encode(path: Path, content: str, encoding: str) -> bytes:
    try:
        return content.encode(encoding)
    except UnicodeEncodeError as err:
        raise DataError(
            f"{path}: {encoding} has no {content[err.start]!r}; leave out data.format.encoding to "
            "write UTF-8"
        ) from None
