"""Explanations over HTTP, and how a replica computes them beside predictions."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient
from support import fake_service, tiny

from medray.engines.attribution import LEAST_POINTS
from medray.registry.registry import Registry
from medray.registry.release import Release
from medray.serving import auth
from medray.serving.api import make_api
from medray.serving.cards import card
from medray.serving.explainer import Explainer
from medray.serving.opening import open_model
from medray.serving.refusals import Refusal
from medray.serving.schemas import AppOptions, Limits
from medray.serving.text_model import TextModel
from medray.tasks.base.route import ExplainRequest, ExplainResponse
from medray.tasks.classification import ClassifyRequest

TEXT = "The biopsy showed carcinoma,  and her pressure was normal."
NOTE = "Dr. Jane Roe (roe@clinic.org) saw a tumour on 2021-03-12."


def later() -> float:
    return time.monotonic() + 60


class ComputeThread(ThreadPoolExecutor):
    """The thread that computes, with a call before the pass of a number."""

    def __init__(self) -> None:
        super().__init__(1)
        self.num_calls = 0
        self.before: dict[int, Callable[[], Any]] = {}

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:  # type: ignore[override]
        self.num_calls += 1
        self.before.pop(self.num_calls, lambda: None)()
        return super().submit(function, *args, **kwargs)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def release(storage: str) -> Release:
    return Registry(storage).publish(tiny.checkpoint(), "cancer")


@pytest.fixture(scope="module")
def thread() -> Iterator[ComputeThread]:
    with ComputeThread() as executor:
        yield executor


def open_text_model(release: Release, thread: ThreadPoolExecutor, precision: Any) -> TextModel:
    options = AppOptions(
        releases=("cancer",), storage_path="-", precision=precision, token_budget=256
    )
    model = open_model(release, options, thread, device="cpu")
    assert isinstance(model, TextModel)
    return model


@pytest.fixture(scope="module")
def model(release: Release, thread: ComputeThread) -> TextModel:
    return open_text_model(release, thread, "fp32")


def shares(words: Any) -> list[float]:
    return [word.share for word in words]


def classify(model: TextModel) -> Any:
    return model.answer(ClassifyRequest(text=TEXT), limits=Limits(), deadline=later()).predictions


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_replica_explains_as_the_loaded_release_does_and_predicts_as_before(
    release: Release, thread: ComputeThread, precision: str
) -> None:
    model = open_text_model(release, thread, precision)
    before = classify(model)
    response = Explainer(Limits()).answer(model, ExplainRequest(text=TEXT), later())
    assert isinstance(response, ExplainResponse)
    expectation = release.load(precision="fp32").explain(TEXT, label=response.label)
    assert shares(response.words) == pytest.approx(shares(expectation.words), abs=1e-4)
    assert [TEXT[word.start : word.end] for word in response.words] == TEXT.split()
    assert (response.release, response.version, response.method) == (
        "cancer",
        1,
        "integrated gradients",
    )
    assert response.error < 0.02
    assert classify(model) == before
    assert response.label == before[0].label


def test_predictions_take_turns_with_the_passes_of_an_explanation(
    model: TextModel, thread: ComputeThread
) -> None:
    order: list[str] = []

    def predict() -> None:
        classify(model)
        order.append("prediction")

    def arrive() -> None:
        go = threading.Event()
        ThreadPoolExecutor.submit(thread, go.wait, 10)
        client.submit(predict)
        while not model.batcher.num_waiting:
            time.sleep(0.001)
        go.set()

    text = " ".join([TEXT] * 30)  # many passes
    with ThreadPoolExecutor(1) as client:
        thread.before = {thread.num_calls + 4: arrive}
        response = Explainer(Limits()).answer(model, ExplainRequest(text=text), later())
        order.append("explanation")
    assert isinstance(response, ExplainResponse)
    assert order == ["prediction", "explanation"]


def test_a_second_text_is_refused_while_one_is_explained(
    model: TextModel, thread: ComputeThread
) -> None:
    explainer, seconds = Explainer(Limits()), []

    def ask() -> None:
        seconds.append(explainer.answer(model, ExplainRequest(text="a"), later()))

    thread.before = {thread.num_calls + 2: ask}
    first = explainer.answer(model, ExplainRequest(text=TEXT), later())
    assert isinstance(first, ExplainResponse)
    (second,) = seconds
    assert (second.status, second.type, second.retry_after_s) == (429, "overloaded", 1)
    ask()
    assert isinstance(seconds[1], ExplainResponse)


def test_an_explanation_ends_at_its_deadline_and_at_its_limit_of_tokens(
    model: TextModel, thread: ComputeThread
) -> None:
    go = threading.Event()
    thread.before = {thread.num_calls + 3: lambda: ThreadPoolExecutor.submit(thread, go.wait, 10)}
    late = Explainer(Limits()).answer(model, ExplainRequest(text=TEXT), time.monotonic() + 1)
    go.set()
    assert isinstance(late, Refusal)
    assert (late.status, late.type) == (504, "deadline_exceeded")
    explainer = Explainer(Limits(explanation_tokens=LEAST_POINTS * 5))
    assert isinstance(explainer.answer(model, ExplainRequest(text="a"), later()), ExplainResponse)
    long = explainer.answer(model, ExplainRequest(text=TEXT), later())
    assert isinstance(long, Refusal)
    assert (long.status, long.type) == (413, "too_many_tokens")
    assert "send at most 5 tokens" in long.message


def test_a_label_or_a_release_without_explanations_is_named_and_not_repeated(
    model: TextModel, storage: str, thread: ComputeThread
) -> None:
    explainer = Explainer(Limits())
    label = explainer.answer(model, ExplainRequest(text="a", label="Jane Canary"), later())
    assert label == Refusal(
        400,
        "unknown_label",
        "label: none of the release's; allowed: cancer, other",
        param="label",
    )
    choice = Registry(storage).publish(tiny.checkpoint("choice"), "choice")
    other = explainer.answer(
        open_text_model(choice, thread, "fp32"), ExplainRequest(text="a"), later()
    )
    assert isinstance(other, Refusal)
    assert (other.status, other.type, other.param) == (400, "wrong_route", "model")
    assert "choice has no explanations" in other.message


def http(service: fake_service.Service, **options: bool) -> TestClient:
    return TestClient(make_api(service, Limits(), None, **options))


def test_the_route_exists_only_where_the_service_has_explanations() -> None:
    body = {"model": "cancer", "text": "a mass"}
    service = fake_service.Service()
    assert http(service).post("/v1/explain", json=body).status_code == 404
    assert "/v1/explain" not in http(service).get("/openapi.json").json()["paths"]
    response = http(service, explanations=True).post(
        "/v1/explain", json=body, headers={"x-request-id": "abc"}
    )
    assert response.headers["x-request-id"] == "abc"
    answer = response.json()
    assert answer["words"] == [
        {"start": 0, "end": 1, "text": "a", "share": 0.1},
        {"start": 2, "end": 6, "text": "mass", "share": 0.4},
    ]
    assert (answer["label"], answer["error"]) == ("cancer", 0.004)
    assert answer["method"] == "integrated gradients"
    assert "not whether the label is right" in answer["caveat"]
    assert "text" not in answer
    with_tokens = TestClient(fake_service.api(service, frozenset({auth.digest("right")})))
    assert with_tokens.post("/v1/explain", json=body).status_code == 401
    (event,) = service.events
    assert (event.request_id, event.status, event.is_explanation) == ("abc", 200, True)
    assert (event.labels, event.confidences) == ((), ())  # it predicts nothing


def test_words_of_a_masked_text_are_those_of_the_text_that_was_sent() -> None:
    service = fake_service.Service()
    answer = (
        http(service, explanations=True, mask_identifiers=True)
        .post("/v1/explain", json={"model": "cancer", "text": NOTE})
        .json()
    )
    assert service.explanations[0].text == "Dr. [NAME] ([EMAIL]) saw a tumour on [DATE]."
    assert [word["text"] for word in answer["words"]] == [
        "Dr.",
        "Jane Roe",
        "(roe@clinic.org)",
        "saw",
        "a",
        "tumour",
        "on",
        "2021-03-12.",
    ]
    assert all(NOTE[word["start"] : word["end"]] == word["text"] for word in answer["words"])
    assert answer["masked"] == {"email": 1, "date": 1, "name": 1}


def test_a_refused_explanation_is_recorded_and_may_be_tried_again() -> None:
    service = fake_service.Service()
    service.refusal = Refusal(429, "overloaded", "another text is being explained", 1)
    response = http(service, explanations=True).post(
        "/v1/explain", json={"model": "cancer", "text": "a"}
    )
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    (event,) = service.events
    assert (event.model, event.status, event.is_explanation) == ("cancer@best", 429, True)


def test_a_classification_is_explained_where_the_service_has_explanations(
    release: Release, storage: str
) -> None:
    assert card(release, explanations=True).has_explanations
    assert not card(release).has_explanations
    choice = Registry(storage).publish(tiny.checkpoint("choice"), "another-choice")
    assert not card(choice, explanations=True).has_explanations
