"""PubMedQA: a question, an abstract about it, and the decision yes, no or maybe.

It reads the official JSON (an object by PMID) and the Hub's `pqa_labeled` (Parquet or JSON lines).
LONG_ANSWER, the abstract's conclusion, states the answer, so no text and no metadata holds it. With
`explain` the expected answer is this conclusion, followed by the decision."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import pyarrow as pa
import pyarrow.parquet
from pydantic import Field, model_validator

from medray.data.formats.base.parsing import (
    check_label,
    first_problem,
    is_pubmedqa,
    json_rows,
    lines,
    missing_file,
    publish,
    refuse_existing,
)
from medray.data.formats.base.protocol import Form, FormatOptions, FormField, Layout
from medray.errors import DataError, suggest
from medray.text.template import Template
from medray.types import Example

LABELS = ("yes", "no", "maybe")
_PLACES = ("question", "contexts")
_CONCLUSION = "long_answer"
_MAX_BYTES = 1 << 30  # of one line, which may hold the whole data set


class Options(FormatOptions):
    FILES: ClassVar[tuple[str, ...]] = ("path", "ground_truth")
    name: Literal["pubmedqa"]
    labels: tuple[str, ...] = Field(
        LABELS,
        min_length=2,
        description="answers to keep, such as ['yes', 'no']; other rows are left out",
    )
    template: str = Field(
        "{contexts}\n\nQuestion: {question}",
        description="the text, made of {question} and optionally {contexts}",
    )
    separator: str = Field("\n", description="between the paragraphs of {contexts}")
    ground_truth: str | None = Field(
        None,
        description="the official test_ground_truth.json: its ids are test rows, the others train",
    )

    explain: bool = Field(
        False,
        description=(
            "the answer in words: the abstract's conclusion, then the decision (for task instruct)"
        ),
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = Template.parse(self.template).names
        if "question" not in names or not set(names) <= set(_PLACES):
            raise ValueError(
                f"template {self.template!r}: must hold {{question}} and may hold {{contexts}}; "
                "other names are not allowed"
            )
        if wrong := [label for label in self.labels if label not in LABELS]:
            raise ValueError(f"labels {wrong[0]!r}: {suggest(wrong[0], LABELS)}")
        return self

    def form(self) -> Form:
        template = Template.parse(self.template)
        fields = (
            FormField(name=name, kind="line" if name == "question" else "text")
            for name in template.names
        )
        return Form(parts=template.parts, fields=tuple(fields), separator=self.separator)


def read(options: Options) -> Iterator[Example]:
    template = Template.parse(options.template)
    truth = read_ground_truth(options.ground_truth) if options.ground_truth else {}
    pmids: set[str] = set()
    for pmid, whole, where in _records(Path(options.path)):
        pmids.add(pmid)
        record, conclusion = _apart(whole)
        label = check_label(_text(record, "final_decision", where).strip().lower(), LABELS, where)
        if pmid in truth and truth[pmid] != label:
            raise DataError(
                f"{where}: the answer is {label!r}, and {truth[pmid]!r} in {options.ground_truth}"
            )
        if label not in options.labels:
            continue
        contexts = [" ".join(part.split()) for part in _contexts(record, where)]
        values = {
            "question": " ".join(_text(record, "question", where).split()),
            "contexts": options.separator.join(contexts),
        }
        split = ("test" if pmid in truth else "train") if options.ground_truth else None
        year = str(record.get("year") or "").strip()
        text = template.render(values).strip() if values["question"] else ""
        metadata = {"year": year} if year else {}
        yield Example(
            pmid,
            text,
            (label,),
            split,
            metadata,
            where,
            response=_explanation(conclusion, label, where) if options.explain else "",
        )
    if missing := sorted(truth.keys() - pmids):
        raise DataError(
            f"{options.path}: lacks {len(missing)} of the {len(truth)} ids of "
            f"{options.ground_truth}, {missing[0]!r} first"
        )


def read_ground_truth(path: str) -> dict[str, str]:
    """Read the official scorer's file: an answer per id."""
    truth = _json(Path(path))
    if (
        not isinstance(truth, dict)
        or not truth
        or not all(answer in LABELS for answer in truth.values())
    ):
        raise DataError(f"{path}: must be a JSON object with one of {', '.join(LABELS)} per id")
    return truth


def write(examples: Iterable[Example], options: Options) -> None:
    """Write the official JSON. The whole text becomes the question, since it cannot be split
    again."""
    path = Path(options.path)
    refuse_existing(path)
    records: dict[str, Any] = {}
    for example in examples:
        if len(example.labels) != 1 or example.labels[0] not in LABELS:
            raise DataError(
                f"{example.where or example.id}: PubMedQA requires one of {', '.join(LABELS)} per "
                f"row, found {example.labels}"
            )
        if example.id in records:
            raise DataError(f"{example.where or example.id}: id {example.id!r} is used twice")
        year = {"YEAR": example.metadata["year"]} if "year" in example.metadata else {}
        records[example.id] = {
            "QUESTION": example.text,
            "CONTEXTS": [],
            **year,
            "final_decision": example.labels[0],
        }
    publish(path, json.dumps(records, indent=1, ensure_ascii=False) + "\n")


def check(options: Options) -> list[str]:
    wrong = missing_file(options.path)
    if options.ground_truth:
        wrong += missing_file(options.ground_truth, "ground_truth")
    return wrong or first_problem(
        read(options),
        f"{options.path}: no row has one of the labels {', '.join(options.labels)}",
    )


def sniff(path: Path) -> Layout | None:
    if not path.is_file() or not _is_of_this_set(path):
        return None
    options = Options(name="pubmedqa", path=str(path))
    labels = [label for example in read(options) for label in example.labels]
    note = (
        "the question is at the end, which is cut from a long text; the task choice with "
        "keep: end keeps it, as in jobs/studies/pubmedqa.yaml"
    )
    return Layout({"name": "pubmedqa", "path": str(path)}, {"label": labels}, (note,))


def _is_of_this_set(path: Path) -> bool:
    if path.suffix == ".parquet":
        try:
            return is_pubmedqa(dict.fromkeys(pa.parquet.read_schema(str(path)).names))
        except (OSError, pa.ArrowException):
            return False  # the format `tables` reports the error
    if path.suffix in (".jsonl", ".ndjson"):
        return any(map(is_pubmedqa, json_rows(path) or ()))
    if path.suffix != ".json":
        return False
    try:
        whole = _json(path)
    except DataError:
        return False
    return isinstance(whole, dict) and is_pubmedqa(whole)


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield id, record with lower-case keys, and place of every row."""
    if path.suffix == ".parquet":
        try:
            table = pa.parquet.read_table(str(path))
        except (OSError, pa.ArrowInvalid) as err:
            raise DataError(
                f"{path}: cannot be read as Parquet: {str(err).splitlines()[0]}"
            ) from None
        rows = ((f"{path}: row {number}", row) for number, row in enumerate(table.to_pylist(), 1))
    elif path.suffix in (".jsonl", ".ndjson"):
        rows = (
            (f"{path}:{number}", _parse(line, f"{path}:{number}"))
            for number, line in enumerate(lines(path), 1)
            if line.strip()
        )
    else:
        whole = _json(path)
        if not isinstance(whole, dict):
            raise DataError(
                f"{path}: must be a JSON object with a record per PMID, found "
                f"{type(whole).__name__}"
            )
        for pmid, record in whole.items():
            yield pmid, _lower_keys(record, f"{path}: {pmid}"), f"{path}: {pmid}"
        return
    for where, row in rows:
        record = _lower_keys(row, where)
        if "pubid" not in record:
            raise DataError(f"{where}: has no pubid; {suggest('pubid', record)}")
        yield str(record["pubid"]), record, where


def _lower_keys(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(f"{where}: must be an object, found {type(record).__name__}")
    return {str(key).lower(): value for key, value in record.items()}


def _apart(record: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Return the record without its conclusion, and the conclusion."""
    return {key: value for key, value in record.items() if key != _CONCLUSION}, record.get(
        _CONCLUSION
    )


def _explanation(conclusion: Any, label: str, where: str) -> str:
    if not isinstance(conclusion, str) or not conclusion.strip():
        raise DataError(f"{where}: has no LONG_ANSWER, which explain true requires as the answer")
    return f"{' '.join(conclusion.split())}\n\nDecision: {label}"


def _contexts(record: Mapping[str, Any], where: str) -> list[str]:
    """Return the list of paragraphs, which is one level deeper in the Hub's layout."""
    contexts = record.get("contexts", record.get("context"))
    contexts = contexts.get("contexts") if isinstance(contexts, dict) else contexts
    if not isinstance(contexts, list) or not all(isinstance(part, str) for part in contexts):
        raise DataError(f"{where}: CONTEXTS must be a list of texts")
    return contexts


def _text(record: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(record.get(key), str):
        raise DataError(
            f"{where}: {key!r} must be text, found {type(record.get(key)).__name__}; the record "
            f"has {', '.join(sorted(record))}"
        )
    return str(record[key])


def _json(path: Path) -> Any:
    return _parse("".join(lines(path, _MAX_BYTES)), str(path))


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as err:
        raise DataError(
            f"{where}: not valid JSON: {err.msg} at line {err.lineno}, character {err.colno}"
        ) from None
    except RecursionError:
        raise DataError(f"{where}: nested too deeply") from None
