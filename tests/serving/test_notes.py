"""Masking and flags as requests and answers see them, and what is counted of answers."""

import asyncio

import numpy as np
import pytest
from ray.util.metrics import Gauge
from starlette.testclient import TestClient
from support import fake_service

from medray.client import LabelAnswer, MentionAnswer, MentionsAnswer
from medray.evaluation.novelty import Cloud
from medray.serving import notes as guards
from medray.serving.api import make_api
from medray.serving.notes import TrainingTexts, far, unlike
from medray.serving.schemas import Limits
from medray.serving.service import Conversation
from medray.serving.shares import Shares, shares, tag_of
from medray.tasks.base.mention_task import ExtractRequest, ExtractResponse
from medray.tasks.base.route import InputNote
from medray.tasks.classification import ClassifyRequest, ClassifyResponse
from medray.types import Message, Prediction, QuestionAnswer, Sampling

NOTE = "Dr. Jane Roe (roe@clinic.org) saw a tumour on 2021-03-12."
ENGLISH = "We studied the effect of the drug in patients with asthma and found that it was safe."
GERMAN = (
    "Wir haben die Wirkung des Medikaments bei Patienten mit Asthma untersucht und sie ist nicht "
    "belegt."
)
CLOUD = Cloud(np.zeros(2), np.eye(2), np.ones(2), 1.0, 1.2)
TRAINING = TrainingTexts(shortest=10, longest=20, languages={"en": 0.99, "": 0.01})


def http(service: fake_service.Service) -> TestClient:
    return TestClient(make_api(service, Limits(), None, mask_identifiers=True))


def test_a_model_reads_the_masked_text_and_the_answer_counts_by_kind_and_input() -> None:
    service = fake_service.Service()
    body = (
        http(service)
        .post("/v1/classify", json={"inputs": [NOTE, "a tumour"], "model": "cancer"})
        .json()
    )
    assert service.requests[0].inputs == (
        "Dr. [NAME] ([EMAIL]) saw a tumour on [DATE].",
        "a tumour",
    )
    assert [note["masked"] for note in body["notes"]] == [{"email": 1, "date": 1, "name": 1}, {}]


def test_without_the_option_a_text_is_read_as_it_was_sent() -> None:
    service = fake_service.Service()
    body = (
        TestClient(fake_service.api(service))
        .post("/v1/classify", json={"text": NOTE, "model": "cancer"})
        .json()
    )
    assert service.requests[0].text == NOTE
    assert body["notes"] == []


@pytest.mark.parametrize("stream", [False, True])
def test_every_message_of_a_conversation_is_masked_and_the_answer_has_a_note(stream: bool) -> None:
    service = fake_service.Service()
    messages = [
        {"role": "user", "content": "I am treated by Dr. Roe"},
        {"role": "assistant", "content": "Ask Dr. Roe"},
        {"role": "user", "content": "mail a@b.org"},
    ]
    response = http(service).post(
        "/v1/chat/completions", json={"model": "adviser", "messages": messages, "stream": stream}
    )
    assert [message.content for message in service.talks[0].messages] == [
        "I am treated by Dr. [NAME]",
        "Ask Dr. [NAME]",
        "mail [EMAIL]",
    ]
    assert response.text.count('"masked":{"name":2,"email":1}') == 1


def test_mentions_in_a_masked_text_have_the_places_of_the_text_that_was_sent() -> None:
    substitute = asyncio.run(guards.mask(ExtractRequest(text=NOTE)))
    start = str(substitute.request.text).index("tumour")
    response = ExtractResponse(
        release="diseases",
        version=1,
        predictions=(
            MentionsAnswer(
                mentions=(
                    MentionAnswer(
                        start=start, end=start + 6, text="tumour", kind="disease", confidence=0.9
                    ),
                )
            ),
        ),
    )
    annotation = substitute.annotate(response)
    assert isinstance(annotation, ExtractResponse)
    ((mention,),) = (answer.mentions for answer in annotation.predictions)
    assert NOTE[mention.start : mention.end] == mention.text == "tumour"
    assert response.predictions[0].mentions[0].start == start


def test_flags_and_masks_share_one_note_per_input() -> None:
    answer = LabelAnswer(
        label="yes", labels=("yes",), confidence=0.75, probabilities={"no": 0.25, "yes": 0.75}
    )
    response = ClassifyResponse(release="cancer", version=1, predictions=(answer,))
    substitute = asyncio.run(guards.mask(ClassifyRequest(text=NOTE)))
    response_with_flags = guards.flag(
        substitute.request, response, TrainingTexts(20, 30, {"en": 1.0})
    )
    (note,) = substitute.annotate(response_with_flags).notes
    assert note.masked["email"] == 1
    assert note.unlike_training == (
        "the text has 8 words; 99 of 100 training texts have at least 20",
    )
    assert guards.flag(substitute.request, response, None) is response
    assert substitute.annotate(response).notes == (
        InputNote(masked={"email": 1, "date": 1, "name": 1}),
    )


def test_flags_of_words_and_embeddings_share_one_note_with_the_distance() -> None:
    answer = LabelAnswer(
        label="yes", labels=("yes",), confidence=0.75, probabilities={"no": 0.25, "yes": 0.75}
    )
    notes = (
        InputNote(distance=2.5, unlike_training=far(2.5, CLOUD)),
        InputNote(distance=1.1, unlike_training=far(1.1, CLOUD)),
    )
    response = ClassifyResponse(
        release="cancer", version=1, predictions=(answer, answer), notes=notes
    )
    substitute = asyncio.run(guards.mask(ClassifyRequest(inputs=(NOTE, ENGLISH))))
    both, near = substitute.annotate(
        guards.flag(substitute.request, response, TrainingTexts(10, 30, {"en": 1.0}))
    ).notes
    assert (both.distance, both.masked["email"]) == (2.5, 1)
    assert both.unlike_training == (
        (
            "the model reads it as unlike its data: at distance 2.50, where 99 of 100 validation "
            "texts lie within 1.20"
        ),
    )
    assert (near.distance, near.unlike_training) == (1.1, ())
    short = (
        guards.flag(
            ClassifyRequest(inputs=("a", ENGLISH)), response, TrainingTexts(10, 30, {"en": 1.0})
        )
        .notes[0]
        .unlike_training
    )
    assert short == (
        "the text has 1 words; 99 of 100 training texts have at least 10",
        both.unlike_training[0],
    )
    assert guards.flag(substitute.request, response, None).notes == notes


def test_a_text_like_those_of_the_training_has_no_flag() -> None:
    assert unlike(ENGLISH, TRAINING) == ()
    assert unlike(ENGLISH.replace(".", " and well tolerated."), TRAINING) == ()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (ENGLISH * 3, "99 of 100 training texts have at most"),
        ("a tumour", "2 words; 99 of 100 training texts have at least"),
        (GERMAN, "the text seems to be in language 'de'; the training texts are in 'en'"),
    ],
)
def test_another_length_or_language_is_flagged(text: str, part: str) -> None:
    (note,) = unlike(text, TRAINING)
    assert part in note


def test_of_a_release_without_kept_figures_nothing_is_known() -> None:
    assert TrainingTexts.of({"num_rows": 3}) is None
    assert TrainingTexts.of(
        {"words": {"p1": 3, "p99": 9}, "languages": {"en": 3, "de": 1}}
    ) == TrainingTexts(3, 9, {"en": 0.75, "de": 0.25})


def test_a_conversation_without_a_match_is_unchanged() -> None:
    conversation = Conversation((Message("user", "What is asthma?"),), Sampling(), None, whole=True)
    substitute = asyncio.run(guards.mask_conversation(conversation))
    assert (substitute.conversation, substitute.counts) == (conversation, {})


def test_a_label_of_any_language_is_a_tag_that_rays_metrics_take() -> None:
    gauge = Gauge("medray_test_of_tags", tag_keys=("label",))
    with pytest.raises(UnicodeEncodeError):  # where this fails, Ray takes every label as it is
        gauge.set(1.0, {"label": "bösartig"})
    for label, tag in (
        ("bösartig", "b\\xf6sartig"),
        ("癌", "\\u764c"),
        ("yes", "yes"),
        ("", "none"),
    ):
        assert tag_of(label) == tag
        gauge.set(1.0, {"label": tag})


def test_answers_to_typed_questions_are_counted_by_confidence_alone() -> None:
    answer = QuestionAnswer("cause", "choice", ("a", "b"), (0.7, 0.3), confidence=0.7)
    row_shares = shares([Prediction("1", (), (), answers=(answer, answer))])
    assert row_shares.labels == {}
    assert (row_shares.confidence["0.6"], row_shares.confidence["0.7"]) == (0.0, 1.0)


def test_validation_shares_are_of_labels_and_of_confidence_up_to_each_bound() -> None:
    rows = [
        Prediction("a", ("yes",), (), 0.97),
        Prediction("b", ("yes",), (), 0.6),
        Prediction("c", (), (), 0.55),
        Prediction("d", ("no", "x"), (), 0.3),
    ]
    row_shares = shares(rows)
    assert row_shares.labels == {"yes": 0.5, "none": 0.25, "no|x": 0.25}
    assert (
        row_shares.confidence["0.4"],
        row_shares.confidence["0.6"],
        row_shares.confidence["0.95"],
        row_shares.confidence["1"],
    ) == (0.25, 0.75, 0.75, 1.0)
    assert shares([Prediction("a", (), ())]) == Shares({}, {})


def test_an_answered_text_is_recorded_with_its_label_and_confidence() -> None:
    service = fake_service.Service()
    http(service).post("/v1/classify", json={"inputs": ["a", "b"], "model": "cancer"})
    assert service.events[0].labels == ("cancer", "cancer")
    assert service.events[0].confidences == (0.83, 0.83)
