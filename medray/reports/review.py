"""Rows for a person to review, as a table to fill in and read back as `data.corrections`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from medray.data import corrections
from medray.errors import ConfigError, DataError
from medray.evaluation.analysis import SplitAnalysis
from medray.storage import files
from medray.text.csv_text import write_table


@dataclass(frozen=True)
class ReviewRow:
    """A mistake of the model, a suspect label, or both."""

    id: str
    given: tuple[str, ...] = ()
    predicted: tuple[str, ...] | None = None  # for a mistake
    confidence: float | None = None
    suggested: tuple[str, ...] | None = None  # for a suspect label
    doubt: float | None = None
    text: str | None = None
    question: str | None = None  # for an answer to a typed question


def rows(
    analysis: SplitAnalysis, *, suspects_only: bool = False, texts: Mapping[str, str] | None = None
) -> list[ReviewRow]:
    """Return mistakes, the most confident first, then suspect labels that the model predicts. With
    `suspects_only`, return all suspect labels and nothing else. Answers to typed questions are
    listed by question."""
    if analysis.questions:
        return [
            replace(row, question=part.name)
            for part in analysis.questions
            for row in rows(part.figures, suspects_only=suspects_only, texts=texts)
        ]
    suspects = {suspect.row_id: suspect for suspect in analysis.suspects}
    mistakes = {mistake.row_id: mistake for mistake in analysis.mistakes}
    ids = list(suspects) if suspects_only else list(dict.fromkeys([*mistakes, *suspects]))
    review_rows = []
    for row_id in ids:
        mistake, suspect = mistakes.get(row_id), suspects.get(row_id)
        if texts is not None and row_id not in texts:
            raise DataError(
                f"row {row_id!r} was evaluated and is missing in the present data, so its text "
                "cannot be shown; leave out --texts"
            )
        review_rows.append(
            ReviewRow(
                id=row_id,
                given=mistake.truth if mistake else suspect.given if suspect else (),
                predicted=mistake.predicted if mistake else None,
                confidence=mistake.confidence if mistake else None,
                suggested=suspect.suggested if suspect else None,
                doubt=suspect.doubt if suspect else None,
                text=None if texts is None else texts[row_id],
            )
        )
    return review_rows


def render(row: ReviewRow) -> str:
    of = f", {row.question}" if row.question else ""
    line = f"{row.id}{of}: label {corrections.cell(row.given)}"
    if row.predicted is not None:
        line += (
            f", predicted {corrections.cell(row.predicted)} with confidence {row.confidence:.3f}"
        )
    if row.suggested is not None:
        line += (
            f"; the label may be wrong, {corrections.cell(row.suggested)} is more probable (doubt "
            f"{row.doubt:.2f})"
        )
    return line if row.text is None else f"{line}\n    {row.text}"


def export(review_rows: Sequence[ReviewRow], path: Path) -> None:
    """Write rows as CSV or JSON lines, by the ending of the path. The column `label` is empty; a
    person fills in corrections there."""
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise ConfigError(f"{path}: the ending is not known; choose .csv or .jsonl")
    optional = [
        name
        for name in ("question", "text")
        if any(getattr(row, name) is not None for row in review_rows)
    ]
    absent = {"id", "question", "text"} - set(optional)
    fields = [
        {
            "id": row.id,
            "label": None,
            **{name: value for name, value in asdict(row).items() if name not in absent},
        }
        for row in review_rows
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
            *optional,
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
            f"{path}: the file exists and may hold corrections, so it is not overwritten; choose "
            "another path"
        )
