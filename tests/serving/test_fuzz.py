"""Requests made from the OpenAPI document, right and wrong ones: each is answered as the document
says, none with a failure of ours."""

from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.schemas import BaseSchema as OpenApiSchema
from schemathesis.specs.openapi import checks
from support import fake_service

from medray.serving.refusals import Refusal

SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", fake_service.api(fake_service.Service()))
OPERATIONS = {operation.ok().label: operation.ok() for operation in SCHEMA.get_all_operations()}
RIGHT, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
# A well-formed request may be refused, since it may combine fields that exclude each other.
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
MANY = pytest.mark.parametrize("num_examples", [15, pytest.param(150, marks=pytest.mark.slow)])


def test_every_route_that_answers_is_in_the_document() -> None:
    assert {
        "POST /v1/classify",
        "POST /classify",
        "POST /v1/choose",
        "POST /v1/extract",
        "POST /v1/decisions",
        "POST /v1/systemone",
        "POST /v1/explain",
        "POST /v1/chat/completions",
        "POST /v1/completions",
    } < OPERATIONS.keys()
    assert {
        "GET /v1/models",
        "GET /v1/models/{model}",
        "GET /v1/releases",
        "GET /healthz",
    } < OPERATIONS.keys()


def with_served_model(label: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return a request that keeps the rules that a schema cannot express: most others would fail
    by them."""
    served = [
        name for name, card in fake_service.CARDS.items() if card.path.removeprefix("/v1") in label
    ] or ["adviser@best"]
    request = body | {"model": served[len(body.get("model") or "") % len(served)]}
    if body.get("questions"):
        request |= with_own_questions(label, body)
    if "explain" in label:
        request["model"] = "cancer@best"
        if len(str(body)) % 2:
            request["label"] = "cancer"
    if "completions" in label:
        request["stream"] = len(str(body)) % 2 == 0
    if body.get("messages"):
        request["messages"] = [*body["messages"], {"role": "user", "content": "?"}]
    if body.get("text") is not None:
        request.pop("inputs", None)
    return request


def with_own_questions(label: str, body: dict[str, Any]) -> dict[str, Any]:
    """A release, and of every second request a question that it answers."""
    question: dict[str, Any] = {
        "type": "choice",
        "name": "label",
        "instructions": "?",
        "choices": [{"value": "cancer"}, {"value": "no cancer"}],
    }
    questions: Any = [question]
    if "systemone" in label:
        questions = {"label": {"type": "choice", "criteria": ["cancer", "no cancer"]}}
    own = {"questions": questions} if len(str(body)) % 2 else {}
    return {"model": "cancer@best", "assets": None, **own}


def ask(schema: OpenApiSchema, label: str, mode: GenerationMode, num_examples: int) -> Counter[int]:
    statuses: Counter[int] = Counter()
    (operation,) = (one.ok() for one in schema.get_all_operations() if one.ok().label == label)

    @settings(
        max_examples=num_examples,
        deadline=2000,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: schemathesis.Case) -> None:
        if mode == RIGHT and isinstance(case.body, dict):
            case.body = with_served_model(label, case.body)
        statuses[case.call_and_validate(checks=CHECKS).status_code] += 1

    one()
    return statuses


@MANY
@pytest.mark.parametrize("label", OPERATIONS)
def test_a_well_formed_request_gets_a_response_of_the_openapi_document(
    label: str, num_examples: int
) -> None:
    statuses = ask(SCHEMA, label, RIGHT, num_examples)
    assert max(statuses) < 500
    assert statuses[200] or label == "GET /v1/models/{model}", statuses


@pytest.mark.parametrize("label", [label for label in OPERATIONS if label.startswith("POST")])
@MANY
def test_a_malformed_request_is_refused_as_in_the_openapi_document(
    label: str, num_examples: int
) -> None:
    assert set(ask(SCHEMA, label, WRONG, num_examples)) <= {400, 404, 422}


def test_the_fuzzer_notices_a_failure() -> None:
    service = fake_service.Service()
    service.refusal = Refusal(418, "teapot", "is no status of ours")
    with pytest.raises(FailureGroup, match="Undocumented status code"):
        ask(
            schemathesis.openapi.from_asgi("/openapi.json", fake_service.api(service)),
            "POST /v1/classify",
            RIGHT,
            20,
        )
