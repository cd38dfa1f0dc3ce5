"""Typed questions to a tiny model behind the real ingress and replica, in this process."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from support import tiny
from support.request_trace import serving

import medray
from medray.client import Client, RefusedError

TEXT = "tumour in the lung"
FINDINGS = "task={name: classification, multi_label: true, max_length: 64}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decisions")


@pytest.fixture(scope="module")
def url(place: Path) -> Iterator[str]:
    with serving(tiny.checkpoint(), place / "one") as url:
        yield url


@pytest.fixture(scope="module")
def findings_url(place: Path) -> Iterator[str]:
    with serving(tiny.checkpoint("study", FINDINGS), place / "several") as url:
        yield url


def test_a_service_answers_as_the_loaded_release_in_any_order_of_options(
    url: str, place: Path
) -> None:
    release = medray.load("traced@1", storage_path=str(place / "one"))
    (row,) = release.predict([TEXT])
    (answer,) = release.decide(TEXT).answers
    client = Client(url)
    for question in (client.questions()[0], _reverse(client.questions()[0])):
        reply = client.decide(TEXT, [question])
        (decision,) = reply.answers
        assert (reply.release, reply.version) == ("traced", 1)
        assert decision.choice == answer.value == row.labels[0]
        assert list(decision.probabilities) == [one["value"] for one in question["choices"]]
        assert [decision.probabilities[label] for label in release.task.labels] == pytest.approx(
            row.probabilities, abs=1e-4
        )
        assert decision.answer_confidence == pytest.approx(row.confidence, abs=1e-4)
    tokens = len(release.engine.tokenizer(TEXT)["input_ids"])
    assert reply.input_tokens == tokens


def _reverse(question: dict) -> dict:  # type: ignore[type-arg]
    return question | {"choices": question["choices"][::-1]}


def test_classify_and_decisions_have_one_confidence(url: str) -> None:
    client = Client(url)
    (label,) = client.classify([TEXT]).predictions
    (decision,) = client.decide(TEXT).answers
    assert (decision.choice, decision.answer_confidence) == (label.label, label.confidence)
    assert decision.probabilities == label.probabilities


def test_a_release_with_several_labels_answers_each_and_any_one_of_them(
    findings_url: str,
) -> None:
    client = Client(findings_url)
    (label,) = client.classify([TEXT]).predictions
    decisions = client.decide(TEXT).answers
    assert {one.name: one.probability for one in decisions} == label.probabilities
    assert tuple(one.name for one in decisions if one.decision) == label.labels
    (alone,) = client.decide(TEXT, client.questions()[1:2]).answers
    assert alone == decisions[1]


def test_a_service_cites_as_the_loaded_release_and_bounds_sentences(url: str, place: Path) -> None:
    release = medray.load("traced@1", storage_path=str(place / "one"))
    text = "Tumour in the lung. Blood pressure was no failure. Fever after surgery."
    (row,) = release.predict([text])
    own = release.cite(text, row)
    client = Client(url)
    (label,) = client.classify([text], citations=True).predictions
    reply = client.decide(text, citations=True)
    for citations in (label.citations, reply.answers[0].citations):
        assert citations is not None
        spans = [(one.start, one.end) for one in citations.sentences]
        assert spans == [(one.start, one.end) for one in own.sentences]
        assert citations.comprehensiveness == pytest.approx(own.comprehensiveness, abs=1e-4)
    assert reply.input_tokens > 3 * client.decide(text).input_tokens
    with pytest.raises(RefusedError, match="400 citations: the text has 65 sentences, and at most"):
        client.decide("Fever. " * 65, citations=True)


def test_refusals_of_the_replica_have_the_status_of_the_format(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    own = Client(url).questions()
    other = {"type": "predicate", "name": "fever", "instructions": "Has the patient fever?"}
    with pytest.raises(openai.BadRequestError, match=r"questions\.1: .* it answers choice"):
        client.decisions.create(model="traced", input=TEXT, questions=[*own, other])  # type: ignore[list-item]
    with pytest.raises(RefusedError, match="404 model: no such release"):
        Client(url).decide(TEXT, own, model="unknown")


@pytest.mark.parametrize("kind", ["decisions", "encoder decisions"])
def test_a_release_of_typed_questions_answers_its_own_and_any_other_in_one_request(
    place: Path, kind: str
) -> None:
    other = {
        "type": "choice",
        "name": "organ",
        "instructions": "the organ was",
        "choices": [{"value": "lung"}, {"value": "heart", "description": "rhythm"}],
    }
    long = {**other, "choices": [{"value": "lung " * 80}, {"value": "heart"}]}
    with serving(tiny.checkpoint(kind), place / kind) as url:
        client = Client(url)
        with pytest.raises(RefusedError, match=r"413 .*a question leaves no room for its text"):
            client.decide(TEXT, [long])
        own = client.questions()
        assert [question["name"] for question in own] == ["cause", "surgery", "growth"]
        reply = client.decide(TEXT, [*own, other])
        alone = client.decide(TEXT, [other]).answers[0]
    release = medray.load("traced@1", storage_path=str(place / kind))
    (row,) = release.predict([TEXT])
    cause, surgery, growth, organ = reply.answers
    assert list(cause.probabilities.values()) == pytest.approx(
        row.answers[0].probabilities, abs=1e-4
    )
    assert surgery.probability == pytest.approx(row.answers[1].probabilities[0], abs=1e-4)
    assert growth.score == pytest.approx(row.answers[2].score, abs=1e-4)
    assert organ.probabilities == pytest.approx(alone.probabilities, abs=1e-4)
    assert sum(organ.probabilities.values()) == pytest.approx(1)
