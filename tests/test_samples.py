import importlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from statistics import mean
from types import ModuleType

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


def test_each_message_has_a_wording_of_each_kind_that_no_other_practice_has(
    triage: ModuleType,
) -> None:
    wordings = triage.wordings
    two_answers = (
        ("needs_reply", wordings.REPLY, wordings.NO_REPLY),
        ("complaint", wordings.COMPLAINT, wordings.NO_COMPLAINT),
    )
    practices = defaultdict(set)
    for row in triage.rows():
        sentences = [
            *wording_of(row["message"], triage, wordings.CURRENT, [row["topic"], row["urgency"]]),
            *wording_of(row["message"], triage, wordings.WRITER, [row["writer"]]),
            *wording_of(row["message"], triage, wordings.OTHER),
        ]
        for question, yes, no in two_answers:
            sentences += wording_of(row["message"], triage, yes if row[question] == "yes" else no)
        assert len(sentences) == 5, row
        for sentence in sentences:
            practices[sentence].add(row["practice"])
    assert {what: where for what, where in practices.items() if len(where) > 1} == {}


def wording_of(
    message: str, triage: ModuleType, kind: tuple[str, ...], answers: Sequence[str] = ()
) -> list[str]:
    """Return the wordings of this kind in a message, if they hold these answers."""
    phrases = {name.lower(): list(pair) for pair, of in triage.MATTERS.items() for name in of}
    phrases |= {name: [writer] for writer, names in triage.WRITERS.items() for name in names}
    matches = []
    for wording in kind:
        pattern = re.sub(r"\\{(a|b|)\\}", r"(?P<x\1>[^.?]+)", re.escape(wording))
        match = re.search(rf"(?:^|[.?] ){pattern}(?: |$)", message, re.IGNORECASE)
        groups = match.groupdict() if match else {}
        own = (groups.get("x") or groups.get("xa") or "").lower()
        if match and (not groups or own in phrases) and (not answers or phrases[own] == answers):
            matches.append(wording)
    return matches


def test_the_messages_are_short_varied_and_labelled_as_synthetic(triage: ModuleType) -> None:
    rows = list(triage.rows())
    assert len({row["message"] for row in rows}) == len(rows) == 576
    assert {row["source"] for row in rows} == {"synthetic"}
    assert max(len(row["message"].split()) for row in rows) < 64
    for question in ("needs_reply", "complaint"):
        assert 0.4 < mean(row[question] == "yes" for row in rows) < 0.6
    for row in rows:  # one of them is current
        matters = [
            pair
            for pair, phrases in triage.MATTERS.items()
            if any(phrase.lower() in row["message"].lower() for phrase in phrases)
        ]
        assert len(matters) == 2, row
        assert (row["topic"], row["urgency"]) in matters
        assert all(len(set(values)) == 2 for values in zip(*matters, strict=True)), row


@pytest.mark.slow
def test_counted_words_answer_few_questions_about_messages_of_unseen_practices(
    tmp_path: Path,
) -> None:
    rows = datasets.load(load_study([SAMPLES.parent / "studies" / "decisions.yaml"]).data)
    test = rows.open_test(tmp_path, "test").examples

    def f1(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
        scores = decision_scores.tally(predictions, examples, attrgetter("name"))
        return bootstrap.value(scores, "f1_macro")

    baseline = AnswerBaseline.majority(rows.train).tfidf(rows.train, rows.validation, f1)
    assert baseline is not None
    assert 0.3 < f1(test, baseline.predict(test)) < 0.6


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
