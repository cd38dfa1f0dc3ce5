import importlib
import re
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType

import pytest

from medray import plugins
from medray.data.formats.spans import Options

SAMPLES = Path(__file__).parent.parent / "jobs" / "samples"


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SAMPLES)
    return importlib.import_module("notes")


def test_the_samples_are_what_their_generator_makes(tmp_path: Path, notes: ModuleType) -> None:
    importlib.import_module("generate").write(tmp_path)
    for name in ("findings.jsonl", "notes.csv", "triage.csv"):
        assert (tmp_path / name).read_bytes() == (SAMPLES / name).read_bytes(), name


def test_no_sentence_and_no_disease_of_the_notes_stands_in_two_clinics(notes: ModuleType) -> None:
    rows = list(notes.rows())
    names = sorted((*notes.CANCERS, *notes.OTHERS), key=len, reverse=True)
    disease = re.compile("|".join(map(re.escape, names)), re.IGNORECASE)
    clinics = defaultdict(set)
    for row in rows:
        for sentence in row["note"].split(". "):
            if match := disease.search(sentence):
                clinics[match[0].lower()].add(row["clinic"])
                clinics[disease.sub("{}", sentence.rstrip("."))].add(row["clinic"])
    assert len(clinics) == len(notes.NOW) + len(notes.NOT_NOW) + len(names)
    assert {what: where for what, where in clinics.items() if len(where) > 1} == {}


def test_the_notes_are_balanced_varied_and_labelled_as_synthetic(notes: ModuleType) -> None:
    rows = list(notes.rows())
    assert Counter(row["label"] for row in rows) == {"cancer": 360, "no_cancer": 360}
    assert len({row["note"] for row in rows}) == len(rows)
    assert {row["source"] for row in rows} == {"synthetic"}
    cancers = re.compile("|".join(map(re.escape, notes.CANCERS)), re.IGNORECASE)
    assert all(cancers.search(row["note"]) for row in rows), "both classes name a cancer"


def test_the_annotated_sample_is_varied_and_its_mentions_stand_where_they_say() -> None:
    rows = list(
        plugins.find("data.formats", "spans").read(
            Options(name="spans", path=str(SAMPLES / "mentions.jsonl"), id="id")
        )
    )
    mentions = [mention for row in rows for mention in row.mentions]
    assert len(rows) == 84
    assert len(mentions) == 210
    assert sum(not row.mentions for row in rows) == 13
    assert len({mention.text.lower() for mention in mentions}) == 200
    assert any(mention.start == 0 for mention in mentions)
    assert any(mention.end == len(row.text) for row in rows for mention in row.mentions)
    for row in rows:  # a name that is annotated once is annotated wherever it stands in its text
        for name in {mention.text for mention in row.mentions}:
            matches = [mention for mention in row.mentions if name in mention.text]
            assert row.text.count(name) == sum(mention.text.count(name) for mention in matches), (
                row.id,
                name,
            )
