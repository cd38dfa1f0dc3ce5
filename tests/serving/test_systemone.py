"""`/v1/systemone` over a service without a model, as plain requests."""

from typing import Any

import pytest
from starlette.testclient import TestClient
from support import fake_service

from medray.serving.openai_decisions import DecisionsRequest
from medray.serving.schemas import SYSTEMONE_PATH, Limits
from medray.serving.service import InquiryReply
from medray.serving.systemone import SystemOneRequest
from medray.types import QuestionAnswer, QuestionOption

SECRET = "patient Jane Roe has a tumour"
CANCER = {"type": "choice", "criteria": ["no cancer", "cancer"]}
FEVER = {"type": "noul", "instructions": "Has the patient fever?"}


def ask(
    state: Any,
    questions: Any,
    *,
    model: str = "cancer@best",
    service: fake_service.Service | None = None,
    limits: Limits | None = None,
    **others: Any,
) -> Any:
    api = fake_service.api(service or fake_service.Service(), limits=limits)
    body = {"model": model, "state": state, "questions": questions, **others}
    return TestClient(api, raise_server_exceptions=False).post(SYSTEMONE_PATH, json=body)


def test_a_choice_is_answered_under_its_name_with_its_probabilities() -> None:
    answer = ask("a text", {"label": CANCER}).json()
    assert answer["answers"] == {
        "label": {
            "type": "choice",
            "choice": "no cancer",
            "probabilities": {
                "no cancer": pytest.approx(2 / 3),
                "cancer": pytest.approx(1 / 3),
            },
            "confidence": pytest.approx(1 / 3),
            "answer_confidence": pytest.approx(2 / 3),
            "threshold": 0.6,
            "abstained": False,
            "citations": None,
        }
    }
    assert answer["model"] == "cancer@best"
    assert answer["usage"] == {"input_tokens": 2, "output_tokens": 0}
    assert answer["id"].startswith("dec-")


def test_yes_or_no_is_answered_with_the_probability_of_yes() -> None:
    answers = ask("high fever", {"fever": FEVER}, model="findings").json()["answers"]
    assert answers["fever"]["noul"] == 0.9
    assert answers["fever"]["probabilities"] == pytest.approx({"true": 0.9, "false": 0.1})
    assert answers["fever"]["decision"] is True


def test_an_answer_below_the_threshold_stays_and_is_marked() -> None:
    answers = ask("an unclear text", {"label": CANCER}).json()["answers"]
    assert (answers["label"]["choice"], answers["label"]["abstained"]) == ("no cancer", True)


@pytest.mark.parametrize(
    ("abstain", "threshold", "is_abstained"),
    [
        (None, 0.6, False),
        (0.7, 0.7, True),
        (0.5, 0.5, False),
        ({"label": 0.7}, 0.7, True),
        ({"choice": 0.7}, 0.7, True),
        ({"label": None, "choice": 0.7}, None, False),
        ({"other": 0.7}, 0.6, False),
    ],
)
def test_a_request_may_set_the_threshold_for_all_or_by_name_or_type(
    abstain: Any, threshold: float | None, is_abstained: bool
) -> None:
    answers = ask("a text", {"label": CANCER}, abstain=abstain).json()["answers"]
    assert (answers["label"]["threshold"], answers["label"]["abstained"]) == (
        threshold,
        is_abstained,
    )


def test_a_state_of_json_is_read_as_its_text() -> None:
    service = fake_service.Service()
    ask({"age": 4, "note": "Fieber ü"}, {"label": CANCER}, service=service)
    ask(["one", "two"], {"label": CANCER}, service=service)
    assert [inquiry.text for inquiry in service.inquiries] == [
        '{"age": 4, "note": "Fieber ü"}',
        '["one", "two"]',
    ]


def test_both_formats_read_the_same_questions() -> None:
    one = SystemOneRequest.model_validate(
        {
            "state": "a",
            "questions": {
                "label": {
                    "type": "choice",
                    "instructions": "Which?",
                    "criteria": {"a": "the first", "b": None},
                },
                "urgent": {"type": "noul", "instructions": "Is it?"},
                "pain": {"type": "score", "instructions": "How much?", "criteria": ["no", "much"]},
            },
        }
    )
    other = DecisionsRequest.model_validate(
        {
            "input": "a",
            "questions": [
                {
                    "type": "choice",
                    "name": "label",
                    "instructions": "Which?",
                    "choices": [{"value": "a", "description": "the first"}, {"value": "b"}],
                },
                {"type": "predicate", "name": "urgent", "instructions": "Is it?"},
                {
                    "type": "score",
                    "name": "pain",
                    "instructions": "How much?",
                    "levels": [{"label": "no"}, {"label": "much"}],
                },
            ],
        }
    )
    assert one.inquiry == other.inquiry


def test_what_yes_and_no_mean_are_descriptions_of_the_options() -> None:
    noul = FEVER | {"criteria": {"true": "above 38 degrees", "false": None}}
    request = SystemOneRequest.model_validate({"state": "a", "questions": {"fever": noul}})
    (question,) = request.inquiry.questions
    assert question.options == (QuestionOption("true", "above 38 degrees"), QuestionOption("false"))


def test_a_score_has_its_expected_level_and_a_legend_in_both_formats() -> None:
    answer = QuestionAnswer("pain", "score", ("no", "some", "much"), (0.1, 0.2, 0.7), 0.7)
    reply = InquiryReply("triage", 1, (answer,), 5)
    one = SystemOneRequest.model_validate(
        {"state": "a", "questions": {"pain": {"type": "score", "criteria": ["no", "some", "much"]}}}
    ).respond(reply, "triage@1", "7")
    assert one.model_dump()["answers"]["pain"] == {
        "type": "score",
        "score": pytest.approx(1.6),
        "legend": {"0": "no", "1": "some", "2": "much"},
        "probabilities": {"0": 0.1, "1": 0.2, "2": 0.7},
        "confidence": pytest.approx(1 - 0.4 / (2 / 3)),
        "answer_confidence": 0.7,
        "threshold": None,
        "abstained": False,
        "citations": None,
    }
    levels = [{"label": label} for label in ("no", "some", "much")]
    score = {"type": "score", "name": "pain", "instructions": "How much?", "levels": levels}
    other = DecisionsRequest.model_validate({"input": "a", "questions": [score]}).respond(
        reply, "triage@1", "7"
    )
    (body,) = other.model_dump()["answers"]
    assert body["score"] == pytest.approx(1.6)
    assert body["probabilities"][2] == {"value": 2, "label": "much", "probability": 0.7}


@pytest.mark.parametrize(
    ("changes", "loc"),
    [
        ({"state": ""}, ["body", "state"]),
        ({"state": 5}, ["body", "state"]),
        ({"questions": {}}, ["body", "questions"]),
        ({"questions": [FEVER]}, ["body", "questions"]),
        ({"questions": {"q": {"type": "essay"}}}, ["body", "questions", "q"]),
        (
            {"questions": {"q": {"type": "choice"}}},
            ["body", "questions", "q", "choice", "criteria"],
        ),
        (
            {"questions": {"q": {"type": "score", "criteria": ["a"]}}},
            ["body", "questions", "q", "score", "criteria"],
        ),
        (
            {"questions": {"q": CANCER | {"criteria": ["a", "a"]}}},
            ["body", "questions", "q", "choice", "criteria"],
        ),
        ({"abstain": 2}, ["body", "abstain"]),
        ({"assets": {"a": {}}}, ["body", "assets"]),
    ],
)
def test_a_wrong_request_is_refused_with_its_place(changes: dict[str, Any], loc: list[str]) -> None:
    body = {"state": "a", "questions": {"label": CANCER}} | changes
    answer = ask(**body)
    assert answer.status_code == 422
    (first, *_) = answer.json()["detail"]
    assert first["loc"][: len(loc)] == loc
    assert first["msg"]
    assert "input" not in first


def test_other_refusals_have_the_same_shape() -> None:
    unknown = ask("a", {"fever": FEVER})
    assert unknown.status_code == 400
    assert unknown.json() == {
        "detail": [
            {
                "loc": ["body", "questions", "fever"],
                "msg": (
                    'this release does not answer it; it answers choice "label" (cancer, no cancer)'
                ),
                "type": "unknown_question",
            }
        ]
    }
    with_text = ask("a", {SECRET: FEVER}).json()
    assert with_text["detail"][0]["loc"] == ["body", "questions", "0"]
    model = ask("a", {"label": CANCER}, model="nobody")
    assert (model.status_code, model.json()["detail"][0]["loc"]) == (404, ["body", "model"])
    many = ask("a", {str(n): CANCER for n in range(5)}, limits=Limits(questions=4))
    assert (many.status_code, many.json()["detail"][0]["type"]) == (413, "too_many_questions")


def test_no_error_repeats_what_was_sent_and_many_entries_are_one_error() -> None:
    for changes in (
        {"model": SECRET},
        {"state": [[[[SECRET]]]], "questions": SECRET},
        {"questions": {SECRET: {"type": "essay"}}},
        {"questions": {SECRET: {"type": SECRET}}},
        {"questions": {"q": CANCER | {"criteria": [SECRET, SECRET]}}},
        {"questions": {"q": CANCER | {"criteria": {SECRET: 1, "b": None}}}},
        {"abstain": {SECRET: SECRET}},
        {"questions": {f"{SECRET} {n}": 1 for n in range(10_000)}},
        {"questions": {"q": CANCER | {"criteria": {f"{SECRET} {n}": 1 for n in range(10_000)}}}},
    ):
        answer = ask(**{"state": SECRET, "questions": {"label": CANCER}} | changes)
        assert answer.status_code in (404, 422)
        assert "Jane" not in answer.text, changes
        assert len(answer.json()["detail"]) <= 5
        assert len(answer.text) < 2000


def test_a_deep_state_and_half_of_a_surrogate_pair_are_refused() -> None:
    deep: Any = []
    for _ in range(40):
        deep = [deep]
    assert "32 levels" in ask(deep, {"label": CANCER}).text
    body = (
        '{"state": ["\\ud800"], "questions": {"label": {"type": "choice", "criteria": ["a", "b"]}}}'
    )
    http = TestClient(fake_service.api(fake_service.Service()), raise_server_exceptions=False)
    answer = http.post(SYSTEMONE_PATH, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
