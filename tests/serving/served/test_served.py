"""The whole service in one Serve session with tiny models: the YAML's way in, HTTP's way out."""

import json
import stat
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import browser, load, tiny
from support.serve_session import TOKEN, Served

import medray
from medray import cli
from medray.client import Client, RefusedError
from medray.data import dataset
from medray.errors import ServingError
from medray.registry import evaluate
from medray.runtime.cluster import free_port

pytestmark = pytest.mark.ray
MARKER = "xylophonist"
TEXTS = [
    "tumour in the lung",
    "fever after infection and no therapy",
    "carcinoma metastasis",
    "blood pressure " * 40,
    "heart failure",
]


@pytest.fixture
def best(either: Served) -> Iterator[Served]:
    """Whatever a test does to the alias, the next one finds version 1 on every replica."""
    yield either
    assert either.run("promote", "cancer@1", "best") == 0


def bodies() -> list[dict[str, Any]]:
    return [{"text": text, "model": "cancer@best"} for text in TEXTS]


@pytest.mark.document(
    "001",
    "a notebook calls the end points",
    where="`medray.client`",
    how="by a client in Python, and `curl`",
)
def test_served_predictions_are_those_of_the_loaded_release(either: Served) -> None:
    model = medray.load("cancer@1", storage_path=str(either.storage))
    rows = [f"{text} {number}" for number, text in enumerate(TEXTS * 4)]
    with ThreadPoolExecutor(4) as pool:  # together, so that they share batches
        answers = list(
            pool.map(
                lambda text: either.client.classify([text], model="cancer@best").predictions[0],
                rows,
            )
        )
    together = either.client.classify(rows, model="cancer@best")
    assert (together.release, together.version) == ("cancer", 1)
    for prediction, one, same in zip(
        model.predict(rows), answers, together.predictions, strict=True
    ):
        assert one.labels == same.labels == prediction.labels
        assert one.label == prediction.labels[0]
        assert not one.abstained
        for answer in (one, same):
            assert list(answer.probabilities.values()) == pytest.approx(
                prediction.probabilities, abs=1e-4
            )
            assert answer.confidence == max(answer.probabilities.values())


def test_a_running_serve_explains_as_the_loaded_release_does(either: Served) -> None:
    text = f"{TEXTS[0]} of a {MARKER}"
    reply = either.client.explain(text, model="cancer@best")
    explanation = medray.load("cancer@1", storage_path=str(either.storage)).explain(text)
    assert (reply.release, reply.version) == ("cancer", 1)
    assert reply.explanation.label == explanation.label
    assert [word.text for word in reply.explanation.words] == text.split()
    assert [word.share for word in reply.explanation.words] == pytest.approx(
        [word.share for word in explanation.words], abs=1e-4
    )
    (line,) = either.audit_lines('"explanation": true')
    assert '"labels": []' in line
    assert MARKER not in line


def test_a_chat_release_has_no_explanations(served: Served) -> None:
    with pytest.raises(RefusedError, match="400 model: adviser has no explanations"):
        served.client.explain(TEXTS[0], model="adviser@1")


def test_a_release_is_loading_until_its_first_replica_answers(served: Served) -> None:
    print(f"health while it started: {served.at_start}")
    assert served.at_start[0] == "loading"
    assert "idle" not in served.at_start
    assert served.client.health()["status"] == "ok"


def test_a_promotion_under_load_loses_no_request_and_another_base_is_one_like_any_other(
    best: Served,
) -> None:
    with load.running(best.port, bodies(), TOKEN, path=best.path) as outcome:
        outcome.until(1)
        for version in (2, 3):
            assert best.run("promote", f"cancer@{version}", "best") == 0
            outcome.until(version)
        for version in (2, 1):
            assert best.run("rollback", "cancer", "best") == 0
            outcome.until(version)
    print(f"promotion: {outcome}")
    assert outcome.num_failed == 0, outcome.wrong[:5]
    assert outcome.num_sent > 100
    assert set(outcome.versions) == {1, 2, 3}
    assert tiny.aliases(best.registry, "cancer") == {"best": 1}


def test_a_release_with_a_broken_file_is_refused_by_promote_and_never_takes_traffic(
    best: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert best.run("promote", "cancer@4", "best") == 1
    assert "adapter_model.safetensors was changed" in capsys.readouterr().err
    assert tiny.aliases(best.registry, "cancer") == {"best": 1}
    with load.running(best.port, bodies(), TOKEN, path=best.path) as outcome:
        best.registry.point("cancer", "best", 4)  # past promote, as another program might
        health = _health_with_error(best.client)
    print(f"broken release: {outcome}")
    assert outcome.num_failed == 0
    assert set(outcome.versions) == {1}
    assert health["status"] == "degraded"
    for replica in health["releases"]["cancer@best"]["replicas"]:
        assert (replica["version"], replica["error_version"]) == (1, 4)
        assert "adapter_model.safetensors was changed" in replica["error"]
    assert best.run("promote", "cancer@5", "best") == 0
    assert best.client.health()["status"] == "ok"


def _health_with_error(client: Client) -> dict[str, Any]:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        health = client.health()
        if all(replica.get("error") for replica in health["releases"]["cancer@best"]["replicas"]):
            return health
        time.sleep(0.1)
    raise AssertionError(health)


def test_a_promotion_that_no_replica_takes_exits_non_zero(
    best: Served, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert best.run("promote", "cancer@2", "best", "--timeout", "0") == 4
    assert "not every replica serves version" in capsys.readouterr().err
    assert best.run("promote", "cancer@2", "next") == 1
    assert (
        f"does not serve cancer@next; it serves {', '.join(best.client.models())}"
        in capsys.readouterr().err
    )
    assert "next" not in tiny.aliases(best.registry, "cancer")
    nobody = [
        "promote",
        "cancer@2",
        "best",
        "--url",
        f"http://127.0.0.1:{free_port()}",
        "--storage-path",
        str(best.storage),
    ]
    assert cli.main(nobody) == 1
    assert "does not answer" in capsys.readouterr().err


def test_a_full_queue_answers_429_with_retry_after_and_recovers(either: Served) -> None:
    slow = {"inputs": ["tumour cell growth " * 20] * 20, "model": "cancer@best"}

    def ask() -> tuple[int, dict[str, Any], dict[str, str]]:
        return load.ask(either.port, slow, TOKEN, path=either.path)

    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(lambda _: ask(), range(120)))
    statuses = [status for status, _, _ in answers]
    print(f"flood: {statuses.count(200)} x 200, {statuses.count(429)} x 429")
    assert set(statuses) == {200, 429}
    refusals = [(body, headers) for status, body, headers in answers if status == 429]
    assert all(
        headers["retry-after"] == "1" and body["error"]["type"] == "overloaded"
        for body, headers in refusals
    )
    assert ask()[0] == 200


def test_limits_and_tokens_hold_over_http(either: Served) -> None:
    assert load.ask(either.port, {"text": "a"}, path=either.path)[0] == 401
    assert load.ask(either.port, {"text": "a"}, "wrong", path=either.path)[0] == 401
    with urllib.request.urlopen(f"{either.client.url}/healthz") as answer:
        assert set(yaml.safe_load(answer.read())) == {"status"}
    for body, status, kind in (
        ({"text": "a" * 200_000, "model": "cancer@best"}, 413, "body_too_large"),
        ({"inputs": ["a"] * 65, "model": "cancer@best"}, 413, "too_many_inputs"),
        (
            {"inputs": ["cell growth stage " * 30] * 64, "model": "cancer@best"},
            413,
            "too_many_tokens",
        ),
        ({"text": " ", "model": "nobody"}, 404, "unknown_model"),
    ):
        actual, answer_body, _ = load.ask(either.port, body, TOKEN, path=either.path)
        assert actual == status, answer_body
        assert answer_body.get("error", {}).get("type", "") == kind
    with pytest.raises(
        RefusedError, match=r"404 model: no such release is served; allowed: .*did you mean"
    ) as error:
        either.client.classify(["a"], model="cance")
    assert error.value.status == 404
    with pytest.raises(ServingError, match="does not answer"):
        Client(f"http://127.0.0.1:{free_port()}").models()


def test_the_only_release_needs_no_name_and_one_of_several_does(
    served: Served, only_classifier: Served
) -> None:
    status, answer, _ = load.ask(served.port, {"text": "a"}, TOKEN)
    assert (status, answer["error"]["type"]) == (400, "ambiguous_model")
    assert served.client.models() == ["cancer@best", "cancer@1", "adviser@1"]
    assert load.ask(only_classifier.port, {"text": "a"}, TOKEN, path=only_classifier.path)[0] == 200
    assert only_classifier.client.models() == ["cancer@best"]


def test_no_text_is_in_any_log_and_the_audit_line_is(either: Served) -> None:
    def ask(body: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, str]]:
        return load.ask(either.port, body, TOKEN, path=either.path)

    assert ask({"text": f"{MARKER} tumour", "model": "cancer@best"})[0] == 200
    for body in ({"texts": MARKER}, {"text": [MARKER]}, {"text": "a", "model": MARKER}):
        _, answer, _ = ask(body)
        assert answer["error"]
    assert MARKER not in str(ask({"texts": MARKER}))
    audit = either.audit_lines('"release": "cancer@1"')
    for part in ('"request_id": "', '"status": 200', '"labels": ["', '"ms": '):
        assert part in audit[-1]
    assert (
        stat.S_IMODE(either.audit.stat().st_mode),
        stat.S_IMODE(either.audit.parent.stat().st_mode),
    ) == (0o600, 0o700)
    texts_by_path = {
        path: path.read_text(errors="replace") for path in either.logs.rglob("*") if path.is_file()
    }
    assert [
        str(path) for path, text in texts_by_path.items() if '"release": "cancer@1"' in text
    ] == []  # Ray's and Serve's have none of it
    texts_by_path[either.audit] = either.audit.read_text()
    assert [str(path) for path, text in texts_by_path.items() if MARKER in text] == []
    assert [str(path) for path, text in texts_by_path.items() if TOKEN in text] == []


def test_prometheus_metrics_name_the_release(served: Served) -> None:
    import ray

    served.client.classify(["tumour"], model="cancer@1")
    url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    end = time.monotonic() + 60
    text = ""
    while time.monotonic() < end and not all(
        name in text
        for name in ("ray_medray_requests_total{", "ray_medray_validation_label_share{")
    ):
        time.sleep(0.5)
        with urllib.request.urlopen(url) as answer:
            text = answer.read().decode()
    lines = [line for line in text.splitlines() if "medray_" in line]
    assert any(
        "medray_requests_total{" in line and 'release="cancer"' in line and 'status="200"' in line
        for line in lines
    ), lines[:5]
    assert any("medray_request_seconds_bucket" in line for line in lines)
    assert any(
        "medray_release_version{" in line and 'model="cancer@best"' in line for line in lines
    )
    assert any("medray_labels_total{" in line and 'release="cancer"' in line for line in lines)
    assert any("medray_confidence_bucket{" in line and 'le="0.5"' in line for line in lines)
    shares = {
        line.split("label=")[1].split('"')[1]: float(line.rsplit(" ", 1)[1])
        for line in lines
        if "medray_validation_label_share{" in line and 'version="1"' in line
    }
    assert sum(shares.values()) == pytest.approx(1)
    assert any(
        "medray_validation_confidence_share{" in line and 'at_most="0.9"' in line for line in lines
    )


def test_the_page_and_what_it_learns_of_the_releases_come_from_a_running_serve(
    either: Served,
) -> None:
    page = urllib.request.Request(either.client.url + "/", headers={"accept": "text/html"})
    with urllib.request.urlopen(page) as answer:
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.read().startswith(b"<!doctype html>")
    request = urllib.request.Request(
        either.client.url + "/v1/releases", headers={"authorization": f"Bearer {TOKEN}"}
    )
    with urllib.request.urlopen(request) as answer:
        body = json.load(answer)
    assert body["unavailable"] == []
    releases = [
        ("cancer@best", "cancer", "/v1/classify"),
        ("cancer@1", "cancer", "/v1/classify"),
        ("adviser@1", "adviser", "/v1/chat/completions"),
    ]
    entries = [(one["id"], one["release"], one["path"]) for one in body["data"]]
    assert entries == (releases[:1] if either.prefix else releases)
    assert all(len(one["labels"]) > 1 for one in body["data"][:2])
    assert all(
        any(figure["validation"] is not None for figure in one["figures"]) for one in body["data"]
    )


@pytest.mark.browser
def test_a_browser_uses_a_running_service(either: Served) -> None:
    with browser.start() as chromium:
        tab = browser.open_tab(chromium, either.client.url + "/#cancer@best", width=360)
        tab.until("!document.getElementById('access').hidden")
        tab.value(
            f"document.getElementById('token').value = {TOKEN!r}; document.querySelector('#access "
            "button').click()"
        )
        tab.until(
            "document.getElementById('release').value === 'cancer@best' && "
            "!document.getElementById('card').hidden"
        )
        tab.value(
            "document.getElementById('field-text').value = 'tumour in the lung'; "
            "document.getElementById('send').click()"
        )
        tab.until("!document.getElementById('answer').hidden")
        label = (
            either.client.classify(["tumour in the lung"], model="cancer@best").predictions[0].label
        )
        assert tab.value("document.querySelector('.verdict').textContent") == label
        assert tab.value("document.documentElement.scrollWidth") == 360
        assert {url.startswith(either.client.url) for url in tab.requests} == {True}


def test_openais_client_gets_the_confidence_of_the_release_from_a_running_serve(
    either: Served,
) -> None:
    questions = either.client.questions("cancer@best")
    decision = either.openai.decisions.create(
        model="cancer@best",
        input=TEXTS[0],
        questions=questions,  # type: ignore[arg-type]
    )
    (answer,) = decision.answers
    (label,) = either.client.classify(TEXTS[:1], model="cancer@best").predictions
    assert answer.type == "choice"
    assert (answer.choice, answer.answer_confidence) == (label.label, label.confidence)  # type: ignore[attr-defined]
    assert {one.value: one.probability for one in answer.probabilities} == label.probabilities
    assert f'"labels": ["{label.label}"]' in either.audit_lines('"release": "cancer@1"')[-1]


def test_a_chat_release_answers_no_typed_questions(served: Served) -> None:
    questions = served.client.questions("cancer@1")
    with pytest.raises(RefusedError, match="400 model: adviser answers at /v1/chat/completions"):
        served.client.decide(TEXTS[0], questions, model="adviser")


def test_two_requests_in_flight_over_a_switch_are_each_answered_by_one_model(best: Served) -> None:
    """Every answer is exactly what its version says to these texts: no request sees half of two
    models."""
    texts = [text + " " + str(number) for number, text in enumerate(TEXTS)]
    reference = {
        version: [
            row.probabilities
            for row in medray.load(f"cancer@{version}", storage_path=str(best.storage)).predict(
                texts
            )
        ]
        for version in (1, 2)
    }
    stop, versions = threading.Event(), set()

    def ask() -> None:
        while not stop.is_set():
            response = best.client.classify(texts, model="cancer@best")
            for prediction, answer in zip(
                reference[response.version], response.predictions, strict=True
            ):
                assert list(answer.probabilities.values()) == pytest.approx(prediction, abs=1e-4)
            versions.add(response.version)

    def wait_for(version: int) -> None:
        end = time.monotonic() + 60
        while version not in versions and not any(one.done() for one in asking):
            assert time.monotonic() < end
            time.sleep(0.01)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            wait_for(1)
            assert best.run("promote", "cancer@2", "best") == 0
            wait_for(2)
        finally:
            stop.set()
        for one in asking:
            one.result(timeout=30)
    assert versions == {1, 2}


@pytest.mark.document("001", "test rows are predicted with softmax", where="`medray evaluate`")
def test_training_evaluate_and_http_predict_the_same_for_the_same_rows(
    either: Served, tmp_path: Path
) -> None:
    study = tiny.study(either.storage.parent / "a", "train.epochs=1")
    rows = dataset.load(study.data).validation
    lines = (
        (either.registry.resolve("cancer@1").folder() / "predictions.jsonl")
        .read_text()
        .splitlines()
    )
    rows_of_training = {row["row_id"]: row for row in map(json.loads, lines)}
    answers = either.client.classify([row.text for row in rows], model="cancer@best").predictions
    for row, answer in zip(rows, answers, strict=True):
        assert list(answer.labels) == rows_of_training[row.id]["labels"]
        assert list(answer.probabilities.values()) == pytest.approx(
            rows_of_training[row.id]["probabilities"], abs=1e-4
        )
    evaluation = evaluate.evaluate(
        "cancer@1", study.data, "validation", storage_path=str(either.storage), log_dir=tmp_path
    )
    right = sum(answer.labels == row.labels for row, answer in zip(rows, answers, strict=True))
    assert evaluation.metrics.values["accuracy"] == pytest.approx(right / len(rows))
