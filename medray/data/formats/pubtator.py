"""PubTator's plain text, the format of BC5CDR and the NCBI disease corpus: `id|t|title`,
`id|a|abstract`, then a line per mention with tabs between its fields.

Offsets count characters of title, a blank and abstract. Lines of relations between concepts (CID in
BC5CDR) are skipped."""

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
    """Write the whole text as the title, since the end of the title is not known. The layout has no
    field for sides and metadata, which are lost."""
    path = Path(options.path)
    refuse_existing(path)
    documents = []
    for example in examples:
        where = example.where or example.id
        check_only_mentions(example)
        if any(character in example.id for character in "|\t\n\r"):
            raise DataError(
                f"{where}: id {example.id!r} cannot be written: it holds a bar, a tab or a line "
                "break"
            )
        if len(example.text.splitlines()) > 1:
            raise DataError(f"{where}: the text has line breaks, which this layout cannot hold")
        annotations = [
            f"{example.id}\t{mention.start}\t{mention.end}\t{mention.text}\t{mention.kind}\n"
            for mention in example.mentions
        ]
        if any("\t" in mention.text + mention.kind for mention in example.mentions):
            raise DataError(
                f"{where}: a mention holds a tab, which separates the fields of this layout"
            )
        documents.append(f"{example.id}|t|{example.text}\n{example.id}|a|\n{''.join(annotations)}")
    publish(path, "\n".join(documents))


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
    """Yield the lines of each document with their places."""
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
            f"{block[1][0]}: the abstract below the title of {row_id!r} is of another document"
        )
    text = f"{title} {abstract}" if abstract else title
    annotations = [_mention(line, row_id, text, place) for place, line in block[2:]]
    mentions = options.select(mention for mention in annotations if mention)
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
            f"{where}: this annotation among those of {row_id!r} is of another document; put an "
            "empty line between documents"
        )
    if len(fields) == 4 and not fields[1].strip().isdecimal():
        return None  # a relation: its name and two concepts
    if len(fields) < _NUM_FIELDS:
        raise DataError(
            f"{where}: has {len(fields)} fields between tabs; a mention needs id, start, end, text "
            "and kind"
        )
    _, start, end, annotation, kind = (field.strip() for field in fields[:_NUM_FIELDS])
    if not all(number.isdecimal() and len(number) < 10 for number in (start, end)):
        raise DataError(f"{where}: start and end must be whole numbers")
    return mention_at(text, int(start), int(end), kind, where, annotation)
