"""The routes over a service that answers without a model."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from medray.client import ChoiceAnswer, LabelAnswer, MentionAnswer, MentionsAnswer
from medray.errors import ConfigError, ServingError
from medray.serving import auth
from medray.serving.api import make_api
from medray.serving.auth import check_address
from medray.serving.refusals import Refusal
from medray.serving.schemas import Health, Limits, ReleaseHealth, ReplicaReport
from medray.serving.service import Conversation, Description, Event, Events
from medray.tasks.base.mention_task import ExtractRequest, ExtractResponse
from medray.tasks.base.route import TextRequest, TextResponse, routes_of
from medray.tasks.choice import ChooseRequest, ChooseResponse
from medray.tasks.classification import ClassifyResponse
from medray.types import DISCLAIMER

SECRET = "patient Jane Roe has a tumour"


class Service:
    def __init__(self, *references: str) -> None:
        self.references = references or ("cancer@best",)
        self.events: list[Event] = []
        self.requests: list[tuple[str, TextRequest]] = []
        self.refusal: Refusal | None = None
        self.is_broken = False

    async def answer(self, reference: str, request: TextRequest) -> TextResponse | Refusal:
        self.requests.append((reference, request))
        if self.is_broken:
            raise ValueError(SECRET)
        if self.refusal:
            return self.refusal
        if isinstance(request, ChooseRequest):
            choice = ChoiceAnswer(
                label="no",
                labels=("no",),
                confidence=0.75,
                ranked=("no", "yes"),
                probabilities={"no": 0.75, "yes": 0.25},
            )
            return ChooseResponse(release="triage", version=2, predictions=(choice,))
        if isinstance(request, ExtractRequest):
            mentions = (
                MentionAnswer(start=0, end=6, text="asthma", kind="Disease", confidence=None),
            )
            return ExtractResponse(
                release="diseases",
                version=3,
                predictions=(MentionsAnswer(mentions=mentions), MentionsAnswer(mentions=())),
            )
        answer = LabelAnswer(
            label="yes", labels=("yes",), confidence=0.75, probabilities={"no": 0.25, "yes": 0.75}
        )
        return ClassifyResponse(
            release="cancer", version=7, predictions=(answer,) * len(request.inputs or (1,))
        )

    async def talk(self, reference: str, conversation: Conversation) -> Events:
        yield Refusal(
            400,
            "wrong_route",
            "model: cancer does not talk; it answers at /v1/classify",
            param="model",
        )

    async def describe(self, reference: str) -> Description | Refusal:
        return self.refusal or Description("cancer", 7)

    async def health(self) -> Health:
        report = ReplicaReport(
            replica="a",
            release="cancer",
            version=7,
            precision="fp32",
            error="ArtifactError: /data/x",
            error_version=8,
        )
        return Health(
            status="degraded",
            releases={"cancer@best": ReleaseHealth(status="degraded", replicas=(report,))},
        )

    def record(self, event: Event) -> None:
        self.events.append(event)


def client(service: Service, digests: frozenset[str] | None = None, **limits: Any) -> TestClient:
    return TestClient(make_api(service, Limits(**limits), digests), raise_server_exceptions=False)


@pytest.mark.document("000", "every abstract gets all probabilities", where="`/v1/classify`")
def test_a_text_and_several_inputs_are_answered_with_release_version_and_all_probabilities() -> (
    None
):
    service = Service()
    http = client(service)
    one = http.post("/v1/classify", json={"text": "a"})
    assert one.status_code == 200
    assert one.json() == {
        "release": "cancer",
        "version": 7,
        "notes": [],
        "predictions": [
            {
                "label": "yes",
                "labels": ["yes"],
                "confidence": 0.75,
                "probabilities": {"no": 0.25, "yes": 0.75},
                "citations": None,
                "abstained": False,
            }
        ],
    }
    assert (
        len(http.post("/v1/classify", json={"inputs": ["a", "b", "c"]}).json()["predictions"]) == 3
    )
    assert [event.labels for event in service.events] == [("yes",), ("yes",) * 3]


@pytest.mark.document(
    "000",
    'POST /classify takes {"text"} and answers {"label"}',
    where="`/classify`",
)
def test_the_short_route_answers_one_text_with_its_label_at_the_top_too() -> None:
    http = client(Service())
    whole = http.post("/v1/classify", json={"text": "a"}).json()
    assert http.post("/classify", json={"text": "a"}).json() == {**whole, "label": "yes"}
    assert http.post("/classify", json={"inputs": ["a"]}).json() == {**whole, "label": "yes"}
    assert "label" not in http.post("/classify", json={"inputs": ["a", "b"]}).json()
    schema = http.get("/openapi.json").json()
    answers = {
        path: schema["paths"][path]["post"]["responses"]["200"]["content"]["application/json"][
            "schema"
        ]["$ref"].rpartition("/")[2]
        for path in ("/v1/classify", "/classify")
    }
    assert "label" in schema["components"]["schemas"][answers["/classify"]]["properties"]
    assert "label" not in schema["components"]["schemas"][answers["/v1/classify"]]["properties"]


@pytest.mark.document(
    "004",
    "interactive testing with questions of one's own",
    where="`/v1/choose`, the page at `/`",
    how="on a page and over HTTP; `medray chat` is for releases that answer in words",
)
def test_a_choice_has_its_own_route_and_its_answer_has_ranks_and_the_disclaimer() -> None:
    service = Service()
    answer = client(service).post("/v1/choose", json={"text": "a"})
    assert answer.status_code == 200
    assert answer.json() == {
        "release": "triage",
        "version": 2,
        "notes": [],
        "predictions": [
            {
                "label": "no",
                "labels": ["no"],
                "confidence": 0.75,
                "abstained": False,
                "ranked": ["no", "yes"],
                "probabilities": {"no": 0.75, "yes": 0.25},
                "citations": None,
            }
        ],
        "disclaimer": DISCLAIMER,
    }
    assert isinstance(service.requests[0][1], ChooseRequest)
    assert client(service).post("/v1/choose", json={"question": "a"}).status_code == 422


@pytest.mark.document("001", "an end point where an LLM names the disease", where="`/v1/extract`")
def test_both_tasks_of_mentions_have_one_route_and_the_log_names_kinds_and_no_text() -> None:
    service = Service("diseases@best")
    answer = client(service).post("/v1/extract", json={"inputs": ["asthma", "b"]})
    assert answer.status_code == 200
    assert answer.json() == {
        "release": "diseases",
        "version": 3,
        "notes": [],
        "predictions": [
            {
                "mentions": [
                    {"start": 0, "end": 6, "text": "asthma", "kind": "Disease", "confidence": None}
                ]
            },
            {"mentions": []},
        ],
        "disclaimer": DISCLAIMER,
    }
    assert [event.labels for event in service.events] == [("Disease", "")]
    paths = client(service).get("/openapi.json").json()["paths"]
    assert "/v1/extract" in paths
    assert routes_of("tagging") == routes_of("extraction")


@pytest.mark.parametrize(
    ("model", "reference"),
    [("cancer@best", "cancer@best"), ("findings", "findings@2"), ("findings@2", "findings@2")],
)
def test_the_model_field_names_the_release(model: str, reference: str) -> None:
    service = Service("cancer@best", "cancer@next", "findings@2")
    assert (
        client(service).post("/v1/classify", json={"text": "a", "model": model}).status_code == 200
    )
    assert service.requests[0][0] == reference


@pytest.mark.parametrize(
    ("body", "status", "kind", "part"),
    [
        ({"text": "a"}, 400, "ambiguous_model", "several releases match; name one of them"),
        (
            {"text": "a", "model": "cancer"},
            400,
            "ambiguous_model",
            "several releases match; name one of them",
        ),
        ({"text": "a", "model": "cancr@best"}, 404, "unknown_model", "did you mean 'cancer@best'"),
        ({"text": "a", "inputs": ["b"]}, 422, "invalid_request", "exactly one of text and inputs"),
        ({}, 422, "invalid_request", 'body: has no text; send it as {"text": "..."}'),
        ({"report": "a"}, 422, "invalid_request", 'body: has no text; send it as {"text": "..."}'),
        ({"text": ""}, 422, "invalid_request", "text"),
        ({"text": 5}, 422, "invalid_request", "text"),
        ({"text": "a", "n": 1}, 422, "invalid_request", "n: is not a field of this request"),
        (["a"], 422, "invalid_request", "body: is not a JSON object"),
        ({"inputs": ["a"] * 9, "model": "cancer@best"}, 413, "too_many_inputs", "at most 8"),
    ],
)
def test_a_wrong_request_gets_one_clear_sentence(
    body: Any, status: int, kind: str, part: str
) -> None:
    answer = client(Service("cancer@best", "cancer@next"), inputs=8).post("/v1/classify", json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["type"] == kind
    assert part in error["message"]


def test_a_body_that_is_not_sent_as_json_gets_the_header_that_is_missing() -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}  # curl -d sends it
    answer = client(Service()).post("/classify", content=b'{"text": "a"}', headers=headers)
    assert answer.status_code == 422
    message = answer.json()["error"]["message"]
    assert message == "body: is not sent as JSON; add -H 'content-type: application/json'"


def test_no_error_repeats_what_was_sent(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()
    http = client(service)
    wrong: list[dict[str, Any]] = [
        {"json": {"texts": SECRET}},
        {"json": {"text": [SECRET]}},
        {"json": {"text": SECRET, "inputs": [SECRET]}},
        {"json": SECRET},
        {"content": f'{{"text": "{SECRET}"'},
    ]
    for body in wrong:
        answer = http.post("/classify", **body)
        assert answer.status_code == 422
        assert "Jane" not in answer.text
    service.is_broken = True
    failure = http.post("/classify", json={"text": SECRET})
    assert failure.status_code == 500
    assert failure.json()["error"]["type"] == "internal_error"
    assert "Jane" not in failure.text + caplog.text
    assert "ValueError at " in caplog.text


def test_a_refusal_keeps_its_status_and_its_retry_after() -> None:
    service = Service()
    service.refusal = Refusal(429, "overloaded", "too many requests are waiting", 3)
    answer = client(service).post("/classify", json={"text": "a"})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert [event.status for event in service.events] == [429]


def test_a_body_over_the_limit_is_refused_declared_or_not() -> None:
    service = Service()
    http = client(service, body_bytes=1000)
    with_length = http.post("/classify", json={"text": "a" * 2000})
    in_chunks = http.post(
        "/classify",
        content=(b"x" * 100 for _ in range(20)),
        headers={"content-type": "application/json"},
    )
    for answer in (with_length, in_chunks):
        assert answer.status_code == 413
        assert answer.json()["error"] == {
            "message": "body: it is larger than 1000 bytes; send less",
            "type": "body_too_large",
            "param": None,
            "code": "body_too_large",
        }
    assert http.post("/classify", json={"text": "a" * 900}).status_code == 200
    assert len(service.requests) == 1


def test_a_load_balancer_may_request_the_head_alone() -> None:
    http = client(Service())
    for path in ("/healthz", "/"):
        answer = http.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


def test_without_a_token_requests_are_refused_and_health_shows_the_status_alone() -> None:
    service = Service()
    http = client(service, frozenset({auth.digest("right"), auth.digest("other")}))
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic right"},
        {"x-api-key": ""},
    ):
        response = http.post("/classify", json={"text": "a"}, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["type"] == "unauthorized"
        assert http.get("/docs", headers=headers).status_code == 401
        assert http.get("/healthz", headers=headers).json() == {"status": "degraded"}
    assert not service.requests
    for headers in (
        {"authorization": "Bearer right"},
        {"authorization": "bearer other"},
        {"x-api-key": "right"},
    ):
        assert http.post("/classify", json={"text": "a"}, headers=headers).status_code == 200
        assert (
            http.get("/healthz", headers=headers).json()["releases"]["cancer@best"]["replicas"][0][
                "error_version"
            ]
            == 8
        )


@pytest.mark.document("001", "a default end point", where="`/`")
def test_models_docs_and_the_root_are_there() -> None:
    http = client(Service("cancer@best", "findings@2"))
    assert [model["id"] for model in http.get("/v1/models").json()["data"]] == [
        "cancer@best",
        "findings@2",
    ]
    detail = http.get("/v1/models/cancer@best").json()
    assert (detail["id"], detail["release"], detail["version"], detail["system"]) == (
        "cancer@best",
        "cancer",
        7,
        None,
    )
    assert http.get("/v1/models/nobody").json()["error"]["code"] == "model_not_found"
    assert http.get("/docs").status_code == 200
    schema = http.get("/openapi.json").json()
    assert {
        "ClassifyRequest",
        "ClassifyResponse",
        "ChooseRequest",
        "ChooseResponse",
        "ErrorBody",
    } <= schema["components"]["schemas"].keys()
    assert http.get("/").json()["models"] == ["cancer@best", "findings@2"]
    error = http.get("/nowhere").json()["error"]
    assert (error["type"], error["message"].partition(";")[0]) == (
        "not_found",
        "/nowhere: no such route",
    )
    assert http.get("/classify").json()["error"]["type"] == "method_not_allowed"


def test_a_request_id_is_kept_where_it_is_one_and_made_where_not() -> None:
    service = Service()
    http = client(service)
    assert (
        http.post("/classify", json={"text": "a"}, headers={"x-request-id": "abc-1"}).headers[
            "x-request-id"
        ]
        == "abc-1"
    )
    http.post("/classify", json={"text": "a"}, headers={"x-request-id": SECRET})
    assert service.events[0].request_id == "abc-1"
    assert "Jane" not in service.events[1].request_id


def test_an_unknown_model_is_recorded_without_the_name_that_was_sent() -> None:
    service = Service()
    client(service).post("/classify", json={"text": "a", "model": SECRET})
    assert (service.events[0].status, service.events[0].model) == (404, "")


def test_a_tokens_file_holds_digests_and_a_wrong_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# who\n{hashlib.sha256(b'right').hexdigest().upper()}  # Ann\n\n")
    assert auth.admits(auth.read_digests(path), "right")
    assert not auth.admits(auth.read_digests(path), "wrong")
    path.write_text("right\n")
    with pytest.raises(ConfigError, match="tokens:1: it is not a SHA-256"):
        auth.read_digests(path)
    path.write_text("# nobody\n")
    with pytest.raises(ConfigError, match="holds no token"):
        auth.read_digests(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        auth.read_digests(tmp_path / "none")


def test_an_address_that_others_reach_needs_tokens_or_a_word() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        check_address(host, has_tokens=False)
    for host in ("0.0.0.0", "::", "10.0.0.7", "example.org"):
        with pytest.raises(ServingError, match="set tokens_file"):
            check_address(host, has_tokens=False)
        check_address(host, has_tokens=True)
