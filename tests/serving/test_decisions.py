"""`/v1/decisions` over a service without a model, through OpenAI's own client."""

from typing import Any

import openai
import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient
from support import fake_service

from medray.serving import auth
from medray.serving.api import make_api
from medray.serving.openai_decisions import DecisionsRequest
from medray.serving.refusals import Refusal
from medray.serving.schemas import DECISIONS_PATH, Limits
from medray.types import DISCLAIMER, QuestionOption

SECRET = "patient Jane Roe has a tumour"
CANCER = {
    "type": "choice",
    "name": "label",
    "instructions": "Is it about cancer?",
    "choices": [{"value": "no cancer"}, {"value": "cancer"}],
}
FEVER = {"type": "predicate", "name": "fever", "instructions": "Has the patient fever?"}


def http(service: fake_service.Service | None = None, **settings: Any) -> TestClient:
    limits = Limits(**settings.pop("limits", {}))
    api = make_api(
        service or fake_service.Service(), limits, settings.pop("digests", None), **settings
    )
    return TestClient(api, raise_server_exceptions=False)


def client(service: fake_service.Service | None = None, **settings: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url="http://testserver/v1",
        api_key="right",
        http_client=http(service, **settings),
        max_retries=0,
    )


def ask(input: Any, *questions: Any, model: str = "cancer@best", **settings: Any) -> Any:
    return client(**settings).decisions.create(model=model, input=input, questions=questions)


def test_openais_client_reads_a_choice_with_its_calibrated_probabilities() -> None:
    decision = ask("a text", CANCER)
    assert decision.model == "cancer@best"
    (answer,) = decision.answers
    assert (answer.type, answer.name, answer.choice) == ("choice", "label", "no cancer")
    assert [(one.value, one.probability) for one in answer.probabilities] == [
        ("no cancer", pytest.approx(2 / 3)),
        ("cancer", pytest.approx(1 / 3)),
    ]
    assert answer.confidence == pytest.approx(1 / 3)  # (2/3 - 1/2) / (1 - 1/2)
    assert (answer.answer_confidence, answer.threshold) == (pytest.approx(2 / 3), 0.6)
    usage = decision.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (2, 0, 2)
    assert usage.input_tokens_details.cached_tokens == 0
    assert (decision.release, decision.version, decision.disclaimer) == ("cancer", 3, DISCLAIMER)


@pytest.mark.parametrize("mask", [False, True])
def test_answers_name_the_sentences_that_they_rest_on_in_the_text_as_sent(mask: bool) -> None:
    text = "Write to jane@roe.example. It is lung cancer. She is well."
    fields = {"input": text, "questions": [CANCER], "citations": True}
    body = http(mask_identifiers=mask).post("/v1/decisions", json=fields | {"model": "cancer@best"})
    (answer,) = body.json()["answers"]
    (sentence,) = answer["citations"]["sentences"]
    assert text[sentence["start"] : sentence["end"]] == sentence["text"] == "It is lung cancer."
    assert (sentence["effect"], answer["citations"]["comprehensiveness"]) == (1.5, 0.25)
    assert ask(text, CANCER).answers[0].citations is None


def test_a_release_with_several_labels_answers_a_predicate_each_in_the_order_asked() -> None:
    asthma = {"type": "predicate", "instructions": 'The text has the label "asthma".'}
    decision = ask("a child with fever", FEVER, asthma, model="findings@best")
    assert [(one.type, one.name, one.decision) for one in decision.answers] == [
        ("predicate", "fever", True),
        ("predicate", None, False),
    ]
    assert [one.probability for one in decision.answers] == pytest.approx([0.9, 0.1])


@pytest.mark.parametrize(("model", "question"), [("cancer@best", CANCER), ("findings@best", FEVER)])
def test_an_abstained_answer_is_a_refusal_with_its_confidence(model: str, question: Any) -> None:
    (answer,) = ask("an unclear text", question, model=model).answers
    assert (answer.type, answer.name) == ("refusal", question["name"])
    assert answer.threshold == 0.6
    assert 0 < answer.answer_confidence < 1
    assert not hasattr(answer, "probability")


def test_a_question_of_another_release_is_refused_with_what_this_one_answers() -> None:
    with pytest.raises(openai.BadRequestError) as error:
        ask("a text", CANCER, FEVER)
    assert error.value.body == {
        "message": (
            "questions.1: this release does not answer it; it answers choice "
            '"label" (cancer, no cancer)'
        ),
        "type": "unknown_question",
        "param": "questions.1",
        "code": "unknown_question",
    }


def test_a_release_without_labels_names_its_own_route() -> None:
    with pytest.raises(openai.BadRequestError, match="diseases answers at /v1/extract"):
        ask("a text", CANCER, model="diseases@1")
    with pytest.raises(openai.NotFoundError, match="no such release"):
        ask("a text", CANCER, model="unknown")


@pytest.mark.parametrize(
    ("input", "text"),
    [
        ([{"role": "user", "content": "one"}], "one"),
        (
            [
                {"type": "message", "role": "system", "content": "one"},
                {"role": "user", "content": [{"type": "input_text", "text": "two"}]},
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "three"}]},
            ],
            "one\n\ntwo\n\nthree",
        ),
        (
            [{"role": "user", "content": [{"type": "input_json", "data": {"age": [4, None]}}]}],
            '{"age": [4, null]}',
        ),
        (
            [
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"a": 1}'},
                {"type": "function_call_output", "call_id": "1", "output": "done"},
            ],
            '{"a": 1}\n\ndone',
        ),
    ],
)
def test_messages_json_and_calls_are_read_as_one_text(input: Any, text: str) -> None:
    service = fake_service.Service()
    ask(input, CANCER, service=service)
    assert service.inquiries[0].text == text


def test_descriptions_and_typed_values_are_kept() -> None:
    request = DecisionsRequest.model_validate(
        {
            "input": "a",
            "questions": [
                {
                    "type": "choice",
                    "instructions": [{"type": "input_text", "text": "Which?"}],
                    "choices": [{"value": True, "description": "it is"}, {"value": "no"}],
                },
                {
                    "type": "score",
                    "instructions": "How?",
                    "levels": [{"label": "l"}, {"label": "h"}],
                },
            ],
        }
    )
    choice, score = request.inquiry.questions
    assert choice.instructions == "Which?"
    assert choice.options == (QuestionOption("true", "it is"), QuestionOption("no"))
    assert (score.kind, score.values) == ("score", ("l", "h"))


IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"input": ""}, "input"),
        ({"input": " \n"}, "holds no text"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [IMAGE]}]}, "images are not supported"),
        ({"input": [{"role": "user"}]}, "content: it is missing"),
        ({"questions": []}, "questions"),
        ({"questions": [CANCER | {"choices": [{"value": "a"}]}]}, "questions.0.choice.choices"),
        ({"questions": [CANCER | {"choices": [{"value": "a"}] * 2}]}, "make them unique"),
        ({"questions": [CANCER | {"choices": [{"value": 1}, {"value": 2}]}]}, "valid string"),
        ({"questions": [CANCER | {"type": "essay"}]}, "questions.0"),
        ({"questions": [{"type": "predicate"}]}, "instructions"),
    ],
)
def test_a_wrong_request_is_refused_in_openais_shape(changes: dict[str, Any], part: str) -> None:
    answer = http().post(
        DECISIONS_PATH, json={"model": "cancer", "input": "a", "questions": [CANCER]} | changes
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request"
    assert part in error["message"]


def test_limits_of_questions_and_options_are_those_of_the_service() -> None:
    body = {"model": "cancer", "input": "a", "questions": [CANCER] * 4}
    assert http(limits={"questions": 4}).post(DECISIONS_PATH, json=body).status_code == 200
    answer = http(limits={"questions": 3}).post(DECISIONS_PATH, json=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "too_many_questions")
    body["questions"] = [CANCER | {"choices": [{"value": str(number)} for number in range(5)]}]
    answer = http(limits={"options": 4}).post(DECISIONS_PATH, json=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "too_many_options")


@pytest.mark.parametrize(
    "changes",
    [
        {"input": [1] * 100_000},
        {"input": [{"role": "user", "content": [1] * 100_000}]},
        {"questions": [1] * 100_000},
        {"questions": [CANCER | {"choices": [1] * 100_000}]},
    ],
)
def test_the_first_wrong_of_many_items_ends_the_validation(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as error:
        DecisionsRequest.model_validate({"input": "a", "questions": [CANCER]} | changes)
    assert error.value.error_count() < 5


@pytest.mark.parametrize(
    "data", [{"a": "\ud800"}, {"\ud800": 1}], ids=["a value with half a pair", "a key with one"]
)
def test_half_of_a_surrogate_pair_and_deep_json_are_refused(data: Any) -> None:
    deep: Any = {}
    for _ in range(40):
        deep = {"a": deep}
    for wrong, part in ((data, "surrogate"), (deep, "more than 32 levels")):
        content = [{"type": "input_json", "data": wrong}]
        with pytest.raises(ValidationError, match=part):
            DecisionsRequest.model_validate(
                {"input": [{"role": "user", "content": content}], "questions": [CANCER]}
            )


def test_no_error_repeats_what_was_sent() -> None:
    wrong: list[dict[str, Any]] = [
        {"model": SECRET},
        {"input": [SECRET]},
        {"questions": [SECRET]},
        {"questions": [CANCER | {"name": SECRET, "choices": [{"value": SECRET}, {"value": "b"}]}]},
        {"questions": [CANCER | {"type": SECRET}]},
        {"questions": [CANCER | {"choices": [{"value": SECRET}] * 2}]},
    ]
    for changes in wrong:
        body = {"model": "cancer", "input": SECRET, "questions": [CANCER]} | changes
        answer = http().post(DECISIONS_PATH, json=body)
        assert answer.status_code in (400, 404)
        assert "Jane" not in answer.text, changes


def test_a_request_is_recorded_with_the_labels_of_the_release() -> None:
    service = fake_service.Service()
    http(service).post(
        DECISIONS_PATH,
        json={"model": "cancer", "input": SECRET, "questions": [CANCER]},
        headers={"x-request-id": "abc-1"},
    )
    (event,) = service.events
    assert (event.request_id, event.model, event.status) == ("abc-1", "cancer@best", 200)
    assert (event.release, event.version, event.labels) == ("cancer", 3, ("a label",))
    service.refusal = Refusal(429, "overloaded", "too many requests are waiting", 3)
    answer = http(service).post(
        DECISIONS_PATH, json={"model": "cancer", "input": "a", "questions": [CANCER]}
    )
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert service.events[-1].status == 429


def test_identifiers_are_masked_before_the_release_reads_the_text() -> None:
    service = fake_service.Service()
    decision = ask("Write to jane@roe.example.", CANCER, service=service, mask_identifiers=True)
    assert service.inquiries[0].text == "Write to [EMAIL]."
    assert decision.notes[0]["masked"] == {"email": 1}


def test_a_token_is_required_where_the_service_has_some() -> None:
    digests = frozenset({auth.digest("right")})
    assert ask("a text", CANCER, digests=digests).answers
    with pytest.raises(openai.AuthenticationError):
        ask("a text", CANCER, digests=frozenset({auth.digest("other")}))


def test_a_release_shows_its_questions_as_a_ready_request() -> None:
    releases = http().get("/v1/releases").json()["data"]
    ready = {one["id"]: one["request"] for one in releases}
    assert ready["diseases@1"] is None
    assert ready["adviser@best"] is None
    assert ready["findings@best"]["questions"][0] == {
        "type": "predicate",
        "name": "asthma",
        "instructions": 'The text has the label "asthma".',
    }
    for name in ("cancer@best", "findings@best", "pubmedqa@2", "symptoms@best"):
        answer = http().post(DECISIONS_PATH, json=ready[name])
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["answers"]) == len(ready[name]["questions"])
    assert "questions" not in releases[0]
