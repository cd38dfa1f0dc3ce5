import importlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from medray import plugins
from medray.config.load import load_study
from medray.data import dataset as datasets
from medray.data.formats.spans import Options
from medray.evaluation import bootstrap, decision_scores
from medray.evaluation.answer_baselines import AnswerBaseline
from medray.types import Example, Prediction

SAMPLES = Path(__file__).parent.parent / "jobs" / "samples"


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SAMPLES)
    return importlib.import_module("notes")


@pytest.fixture
def triage(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SAMPLES)
    return importlib.import_module("triage")


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


def test_a_message_names_two_matters_and_two_people_and_all_that_decides_stands_in_it(
    triage: ModuleType,
) -> None:
    rows = list(triage.rows())
    assert len({row["message"] for row in rows}) == len(rows) == 360
    assert {row["source"] for row in rows} == {"synthetic"}
    assert max(len(row["message"].split()) for row in rows) < 50
    firsts = Counter()
    for row in rows:
        matters = in_order(row["message"], triage.MATTERS)
        writers = in_order(row["message"], triage.WRITERS)
        assert len(matters) == len(writers) == 2, row
        assert (row["topic"], row["urgency"]) in matters
        assert all(len(set(values)) == 2 for values in zip(*matters, strict=True)), row
        assert row["writer"] in writers
        for question, kinds in (("needs_reply", triage.REPLY), ("complaint", triage.COMPLAINT)):
            assert in_order(row["message"], kinds) == [row[question]], row
            firsts[question] += row[question] == "yes"
        firsts["matter"] += matters[0] == (row["topic"], row["urgency"])
        firsts["writer"] += writers[0] == row["writer"]
    assert all(0.4 < count / len(rows) < 0.6 for count in firsts.values()), firsts


def in_order(message: str, phrases: Mapping[Any, Sequence[str]]) -> list[Any]:
    """Return what the phrases in a message stand for, in the order of the message."""
    text = message.lower()
    names = [(name.lower(), kind) for kind, own in phrases.items() for name in own]
    return [
        kind for _, kind in sorted((text.index(name), kind) for name, kind in names if name in text)
    ]


@pytest.mark.slow
def test_counted_words_tell_neither_writer_nor_topic_nor_urgency_of_a_message(
    tmp_path: Path,
) -> None:
    rows = datasets.load(load_study([SAMPLES.parent / "studies" / "decisions.yaml"]).data)
    test = rows.open_test(tmp_path, "test").examples

    def f1(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
        scores = decision_scores.tally(predictions, examples, attrgetter("name"))
        return bootstrap.value(scores, "f1_macro")

    baseline = AnswerBaseline.majority(rows.train).tfidf(rows.train, rows.validation, f1)
    assert baseline is not None
    assert 0.5 < f1(test, baseline.predict(test)) < 0.8


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
