"""PubTator's plain text, as BC5CDR and the NCBI disease corpus come: `id|t|title`, `id|a|abstract`,
then a tab-separated line a mention.

Offsets count characters of title, a blank and abstract. Relations between concepts (BC5CDR's CID
lines) are passed over."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from medray.data.formats.base.mention_options import (
    MentionOptions,
    check_only_mentions,
    kinds_of,
    mention_at,
)
from medray.data.formats.base.parsing import (
    check_id,
    check_label,
    first_problem,
    lines,
    missing_file,
    publish,
    refuse_existing,
)
from medray.data.formats.base.protocol import Layout
from medray.errors import DataError
from medray.types import Example, Mention

_NUM_FIELDS = 5  # id, start, end, text, kind; concept ids may follow


class Options(MentionOptions):
    name: Literal["pubtator"]


def read(options: Options) -> Iterator[Example]:
    for block in _blocks(Path(options.path)):
        yield _example(block, options)


def write(examples: Iterable[Example], options: Options) -> None:
    """The whole text as the title: where a title ends in a text is not known. Sides and metadata
    have no place in this layout."""
    path = Path(options.path)
    refuse_existing(path)
    written = []
    for example in examples:
        where = example.where or example.id
        check_only_mentions(example)
        if any(character in example.id for character in "|\t\n\r"):
            raise DataError(
                f"{where}: id {example.id!r} cannot be written: it holds a bar, a tab or a line "
                "break"
            )
        if len(example.text.splitlines()) > 1:
            raise DataError(f"{where}: the text has line breaks, and this layout has a line for it")
        said = [
            f"{example.id}\t{found.start}\t{found.end}\t{found.text}\t{found.kind}\n"
            for found in example.mentions
        ]
        if any("\t" in found.text + found.kind for found in example.mentions):
            raise DataError(
                f"{where}: a mention holds a tab, which separates the fields of this layout"
            )
        written.append(f"{example.id}|t|{example.text}\n{example.id}|a|\n{''.join(said)}")
    publish(path, "\n".join(written))


def check(options: Options) -> list[str]:
    return missing_file(options.path) or first_problem(
        read(options), f"{options.path}: has no rows"
    )


def sniff(path: Path) -> Layout | None:
    if not path.is_file():
        return None
    first = next((line for line in lines(path) if line.strip()), "")
    if first.split("|", 2)[1:2] != ["t"]:
        return None
    texts = [example.text for example in read(Options(name="pubtator", path=str(path)))]
    return Layout({"name": "pubtator", "path": str(path)}, {"text": texts})


def _blocks(path: Path) -> Iterator[list[tuple[str, str]]]:
    """Lines with their places, by document."""
    block: list[tuple[str, str]] = []
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            block.append((f"{path}:{number}", line.rstrip("\r\n")))
        elif block:
            yield block
            block = []
    if block:
        yield block


def _example(block: list[tuple[str, str]], options: Options) -> Example:
    where, first = block[0]
    row_id, title = _part(first, "t", where)
    if len(block) < 2:
        raise DataError(f"{where}: document {row_id!r} has no abstract line `{row_id}|a|…`")
    abstract_id, abstract = _part(block[1][1], "a", block[1][0])
    if abstract_id != row_id:
        raise DataError(
            f"{block[1][0]}: abstract of another document below the title of {row_id!r}"
        )
    text = f"{title} {abstract}" if abstract else title
    found = [_mention(line, row_id, text, place) for place, line in block[2:]]
    mentions = options.select(mention for mention in found if mention)
    labels = tuple(check_label(kind, options.labels, where) for kind in kinds_of(mentions))
    return Example(row_id, text, labels, None, {}, where, mentions=mentions)


def _part(line: str, mark: str, where: str) -> tuple[str, str]:
    parts = line.split("|", 2)
    if len(parts) < 3 or parts[1] != mark:
        what = "title" if mark == "t" else "abstract"
        raise DataError(f"{where}: expected the {what} as `id|{mark}|…`")
    return check_id(parts[0].strip(), where), parts[2]


def _mention(line: str, row_id: str, text: str, where: str) -> Mention | None:
    fields = line.split("\t")
    if fields[0].strip() != row_id:
        raise DataError(
            f"{where}: annotation of another document among those of {row_id!r}; an empty line "
            "separates documents"
        )
    if len(fields) == 4 and not fields[1].strip().isdecimal():
        return None  # a relation: its name and two concepts
    if len(fields) < _NUM_FIELDS:
        raise DataError(
            f"{where}: {len(fields)} fields separated by tabs; a mention has id, start, end, text "
            "and kind"
        )
    _, start, end, said, kind = (field.strip() for field in fields[:_NUM_FIELDS])
    if not all(number.isdecimal() and len(number) < 10 for number in (start, end)):
        raise DataError(f"{where}: start and end must be whole numbers")
    return mention_at(text, int(start), int(end), kind, where, said)
