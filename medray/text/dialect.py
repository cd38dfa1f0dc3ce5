"""Detects how a delimited file is written: its encoding, its delimiter, and whether its first row
is a header.

`medray init` and `medray predict` both use this, so that they read the same files.
"""

import codecs
import re
from collections.abc import Collection, Iterable, Sequence

USUAL_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".psv": "|"}
DELIMITERS = (",", "\t", "|", ";")
TEXT_NAMES = (
    "text",
    "abstract",
    "title_abstract",
    "document",
    "content",
    "body",
    "note",
    "report",
    "sentence",
)
LABEL_NAMES = (
    "label",
    "labels",
    "class",
    "category",
    "condition",
    "diagnosis",
    "disease",
    "target",
    "answer",
)
QUESTION_NAMES = ("instruction", "question", "query", "prompt")
CONTEXT_NAMES = ("input", "context", "contexts", "passage", "background")
ANSWER_NAMES = ("response", "answer", "reply", "output", "completion")
ID_NAMES = ("id", "pmid", "doc_id", "document_id", "row_id", "abstract_id", "uid")
_SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
_PACKED_BYTES = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # the first bytes of spreadsheet files
SAVE_AS_CSV = (
    "a spreadsheet cannot be read; save it as 'CSV UTF-8 (comma delimited)' and give that file"
)
ENCODINGS = "allowed: utf-8, utf-16, cp1252 and other encodings of Python"
# Bytes that could not be decoded, as the error handler surrogateescape returns them.
ESCAPED_BYTES = re.compile("[\udc80-\udcff]")
_WIDE = re.compile("[^\0-\x7f\udc80-\udcff]")
_KNOWN_NAMES = {*TEXT_NAMES, *LABEL_NAMES, *ID_NAMES, "title", "split"}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# cp1252 has no character for the first five. The last one is rarely a letter and often damage.
_NOT_CP1252 = set(b"\x81\x8d\x8f\x90\x9d\xff")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # Excel's, above the header
_QUOTED_FIELD = re.compile(r'"(?:[^"]|"")*+"?')
_LONG_NAME = 200  # characters; a longer cell of the first row is a text, not a name


def guess_encoding(chunks: Iterable[bytes]) -> str:
    """Return utf-8, utf-16, or cp1252 if most bytes beyond ASCII are not UTF-8. Damage in a few
    rows does not change utf-8."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    bad_bytes, num_wide, is_first = bytearray(), 0, True
    for chunk in chunks:
        if is_first and (encoding := _by_first_bytes(chunk)):
            return encoding
        is_first = False
        text = decoder.decode(chunk)
        if not text.isascii():
            bad_bytes += bytes(ord(character) & 0xFF for character in ESCAPED_BYTES.findall(text))
            num_wide += len(_WIDE.findall(text))
    return "cp1252" if len(bad_bytes) > num_wide and not _NOT_CP1252 & set(bad_bytes) else "utf-8"


def _by_first_bytes(head: bytes) -> str | None:
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    pairs = len(head[:1000]) // 2
    for start, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if pairs and head[:1000][start::2].count(0) > pairs / 2 > head[:1000][1 - start :: 2].count(
            0
        ):
            return name
    return None


def is_spreadsheet(name: str, head: bytes = b"") -> bool:
    return name.lower().endswith(_SPREADSHEETS) or head.startswith(_PACKED_BYTES)


def is_encoding(name: str) -> bool:
    try:
        return bool("a".encode(name))
    except (LookupError, UnicodeError, ValueError):
        return False


def check_encoding(name: str) -> str:
    if not is_encoding(name):
        raise ValueError(f"{name!r:.40} is not known; {ENCODINGS}")
    return name


def codec(encoding: str) -> str:
    """Return Python's name of an encoding; that for UTF-8 removes a byte order mark."""
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def declared_delimiter(first: str) -> str | None:
    """Return the delimiter that a first line `sep=;` names, or None."""
    match = _SEPARATOR_LINE.fullmatch(first)
    return match.group(1) if match else None


def likely_delimiter(first: str, ending: str) -> str | None:
    """Return the most frequent delimiter of the first line. In a tie, that of the file's ending
    wins."""
    if delimiter := declared_delimiter(first):
        return delimiter
    outside, usual = _QUOTED_FIELD.sub("", first), USUAL_DELIMITERS.get(ending.lower())
    counts = {delimiter: outside.count(delimiter) for delimiter in DELIMITERS}
    best = max(counts, key=lambda each: (counts[each], each == usual))
    return best if counts[best] else usual


def plain_name(name: str) -> str:
    """Return a column's name on one line."""
    return " ".join(name.split()) if "\n" in name or "\r" in name else name.strip()


def spelling(name: str) -> str:
    """Return the form of a name for comparisons: `Label (0 = no)` becomes `label`."""
    return re.sub(r"[\W_]+", "_", re.sub(r"\(.*?\)", "", name).lower()).strip("_")


def has_known_name(cells: Iterable[str]) -> bool:
    return any(spelling(cell) in _KNOWN_NAMES for cell in cells)


def is_header(
    first: Sequence[str], below: Sequence[Sequence[str]], names: Collection[str] = ()
) -> bool:
    """Return whether the first row is a header. It is if it has a known name or one of `names`.

    Else it is not if a cell is a whole text, or if a cell's value occurs again in its column."""
    cells = [plain_name(cell) for cell in first]
    if has_known_name(cells) or any(cell in names for cell in cells):
        return True
    if any(len(cell) >= _LONG_NAME for cell in cells):
        return False
    rows = [[value.strip() for value in row] for row in below if len(row) == len(cells)]
    return not any(
        cell and any(row[at] == cell and row != cells for row in rows)
        for at, cell in enumerate(cells)
    )


def default_names(num_columns: int) -> list[str]:
    return [f"column_{number}" for number in range(1, num_columns + 1)]
