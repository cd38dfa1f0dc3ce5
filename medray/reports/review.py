"""Rows for a person to look at again, as a table that can be filled in and read back as
`data.corrections`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from medray.data import corrections
from medray.errors import ConfigError, DataError
from medray.evaluation.analysis import SplitAnalysis
from medray.storage import files
from medray.text.csv_text import write_table


@dataclass(frozen=True)
class Row:
    id: str
    given: tuple[str, ...] = ()
    predicted: tuple[str, ...] | None = None  # of a mistake
    confidence: float | None = None
    suggested: tuple[str, ...] | None = None  # of a suspected label
    doubt: float | None = None
    text: str | None = None


def rows(
    found: SplitAnalysis, *, suspects_only: bool = False, texts: Mapping[str, str] | None = None
) -> list[Row]:
    """Mistakes, the surest first, then labels that are suspected though the answer agrees; or the
    suspected ones alone."""
    doubted = {suspect.row_id: suspect for suspect in found.suspects}
    mistaken = {mistake.row_id: mistake for mistake in found.mistakes}
    ids = (
        list(doubted)
        if suspects_only
        else [*mistaken, *(row_id for row_id in doubted if row_id not in mistaken)]
    )
    made = []
    for row_id in ids:
        mistake, suspect = mistaken.get(row_id), doubted.get(row_id)
        if texts is not None and row_id not in texts:
            raise DataError(
                f"row {row_id!r} was judged and is not in the data as it is now: its texts cannot "
                "be shown"
            )
        made.append(
            Row(
                id=row_id,
                given=mistake.truth if mistake else suspect.given if suspect else (),
                predicted=mistake.predicted if mistake else None,
                confidence=mistake.confidence if mistake else None,
                suggested=suspect.suggested if suspect else None,
                doubt=suspect.doubt if suspect else None,
                text=None if texts is None else texts[row_id],
            )
        )
    return made


def render(row: Row) -> str:
    said = f"{row.id}: given {corrections.cell(row.given)}"
    if row.predicted is not None:
        said += f", answered {corrections.cell(row.predicted)} with confidence {row.confidence:.3f}"
    if row.suggested is not None:
        said += (
            f"; the label may be wrong, {corrections.cell(row.suggested)} is likelier (doubt "
            f"{row.doubt:.2f})"
        )
    return said if row.text is None else f"{said}\n    {row.text}"


def export(found: Sequence[Row], path: Path) -> None:
    """CSV or JSON lines, by the ending. `label` is left empty: what is filled in there is a
    correction, what is not is none."""
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise ConfigError(f"{path}: rows for review are written as .csv or .jsonl")
    with_texts = any(row.text is not None for row in found)
    fields = [
        {
            "id": row.id,
            "label": None,
            **{k: v for k, v in asdict(row).items() if k != "id" and (with_texts or k != "text")},
        }
        for row in found
    ]
    if path.suffix.lower() == ".jsonl":
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in fields)
    else:
        names = [
            "id",
            "label",
            "given",
            "predicted",
            "confidence",
            "suggested",
            "doubt",
            *(["text"] if with_texts else []),
        ]
        content = write_table(
            names,
            (
                {
                    name: corrections.cell(value) if isinstance(value, tuple) else value
                    for name, value in row.items()
                }
                for row in fields
            ),
        )
    if not files.create(path, content.encode("utf-8")):
        raise ConfigError(
            f"{path}: is there already and is left alone, since somebody may have filled it in; "
            "choose another path"
        )
