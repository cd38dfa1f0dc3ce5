"""Hostile services as references of a study: bounded size and time, one sentence with the address,
and nothing that a service could learn or leave behind."""

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.decision_server import Body, Response, answering, serving

from medray.config.reference import ReferenceConfig
from medray.data import dataset
from medray.errors import ConfigError, TrialError
from medray.study import preflight, resume, service_client
from medray.study.services import DecisionService
from medray.tasks.base import protocol as tasks
from medray.tasks.base.decision_formats import read_response, request_body
from medray.types import Question, QuestionOption

TOKEN = "Z9-canary-token-0f"
CANARY = "Jane Canary Roe"  # in a hostile response
QUESTION = Question("topic", "choice", "What is it?", (QuestionOption("a"), QuestionOption("b")))
SCORE = Question("pain", "score", "How much?", (QuestionOption("a"), QuestionOption("b")))
YES = Question("fever", "predicate", "Fever?", (QuestionOption("true"), QuestionOption("false")))
USAGE = {"input_tokens": 1, "output_tokens": 0}


def ask(folder: Path, url: str, **settings: Any) -> None:
    study = tiny.decision_study(folder)
    rows = dataset.load(study.data)
    config = ReferenceConfig(url=url, model="big", **settings)
    service = DecisionService(config, folder / "services", sleep=lambda seconds: None)
    service.check(tasks.fit(study.task, rows.label_sets(), rows.train), rows.validation)


def choice(*pairs: tuple[Any, Any]) -> Any:
    probabilities = [{"value": value, "probability": share} for value, share in pairs]
    return {"answers": [{"type": "choice", "probabilities": probabilities}], "usage": USAGE}


NOT_A_NUMBER = float("nan")
BAD_CONTENTS = [
    (None, "the response: is no object"),
    ([], "the response: is no object"),
    ({}, "no list of answers to 1 questions"),
    ({"answers": [], "usage": USAGE}, "0 answers to 1 questions"),
    ({"answers": [{}, {}], "usage": USAGE}, "2 answers to 1 questions"),
    ({"answers": [3], "usage": USAGE}, r"answers\.0: is no object"),
    ({"answers": [{"type": "score"}], "usage": USAGE}, r"answers\.0: is no answer of a choice"),
    ({"answers": [{"type": "choice"}], "usage": USAGE}, r"answers\.0: is no answer of a choice"),
    (
        {"answers": [{"type": "refusal", "name": "x"}], "usage": USAGE},
        "the name of another question",
    ),
    (choice(("a", 1.0)), "with a probability for each option"),
    (choice(("a", 0.5), ("b", 0.5), ("c", 0.0)), "with a probability for each option"),
    (choice(("a", 0.5), ("a", 0.5)), "with a probability for each option"),
    (choice(("a", 0.5), (True, 0.5)), "with a probability for each option"),
    (choice(("a", 0.5), (["b"], 0.5)), "with a probability for each option"),
    (choice(("a", NOT_A_NUMBER), ("b", 0.5)), "with a probability for each option"),
    (choice(("a", 1.5), ("b", -0.5)), "with a probability for each option"),
    (choice(("a", "0.5"), ("b", 0.5)), "with a probability for each option"),
    (choice(("a", True), ("b", False)), "with a probability for each option"),
    (choice(("a", 10**400), ("b", 0.5)), "with a probability for each option"),
    (choice(("a", 0.5), ("b", 0.4)), "do not sum to 1"),
    (choice(("a", 0), ("b", 0)), "do not sum to 1"),
    ({**choice(("a", 0.5), ("b", 0.5)), "usage": None}, "usage: is no object"),
    ({**choice(("a", 0.5), ("b", 0.5)), "usage": {"input_tokens": -1}}, "usage: has no numbers"),
    ({**choice(("a", 0.5), ("b", 0.5)), "usage": {"input_tokens": True}}, "usage: has no numbers"),
]


@pytest.mark.parametrize(("content", "message"), BAD_CONTENTS)
def test_a_malformed_answer_is_an_error_that_repeats_nothing_of_it(
    content: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_response("decisions", content, [QUESTION])
    assert "0.5" not in str(error.value)


@pytest.mark.parametrize(
    "answers",
    [
        None,
        [],
        {},
        {"topic": 1},
        {"other": {"type": "choice", "probabilities": {"a": 0.5, "b": 0.5}}},
        {"topic": {"type": "choice", "probabilities": {"a": 1.0}}},
        {"topic": {"type": "choice", "probabilities": [0.5, 0.5]}},
        {"topic": {"type": "choice", "probabilities": {"a": 0.5, "b": NOT_A_NUMBER}}},
        {"topic": {"type": "noul", "noul": 0.5}},
    ],
)
def test_a_malformed_answer_of_system_one_is_an_error(answers: Any) -> None:
    with pytest.raises(ValueError, match=r"answers|probabilities: is no object"):
        read_response("systemone", {"answers": answers, "usage": USAGE}, [QUESTION])


def test_levels_are_matched_by_their_number_and_rounded_sums_become_1() -> None:
    pairs = [{"value": 1, "probability": 0.66}, {"value": 0, "probability": 0.33}]
    answers = [
        {"type": "score", "name": "pain", "probabilities": pairs},
        {"type": "predicate", "probability": 1},
        {"type": "refusal"},
    ]
    content = read_response(
        "decisions", {"answers": answers, "usage": USAGE}, [SCORE, YES, QUESTION]
    )
    assert content.shares == (pytest.approx((1 / 3, 2 / 3)), (1.0, 0.0), None)


def test_descriptions_of_options_are_sent_in_both_formats() -> None:
    options = (QuestionOption("true", "above 38"), QuestionOption("false"))
    fever = Question("fever", "predicate", "Fever?", options)
    (question,) = request_body("decisions", "m", "t", [fever])["questions"]
    assert question["instructions"] == "Fever?\ntrue: above 38"
    criteria = request_body("systemone", "m", "t", [fever])["questions"]["fever"]["criteria"]
    assert criteria == {"true": "above 38", "false": None}


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (Response(200, b"no JSON " + CANARY.encode()), "no valid JSON"),
        (Response(200, b"[" * 200_000), "no valid JSON"),
        (Response(200, b"NaN"), "no valid JSON"),
        (Response(200, b"\xff\xfe"), "no valid JSON"),
        (Response(200, b"1" * 10_000), "no valid JSON"),
        (Response(200, {"answers": CANARY}), "no list of answers to 3 questions"),
        (Response(200, b" " * (17 << 20)), "more than 16 MB"),
        (Response(400, {"error": {"message": CANARY}}), "answered 400 Bad Request"),
        (Response(403, {"error": CANARY}), "answered 403 Forbidden; set the reference's token"),
        (Response(500, {"error": CANARY}), "answered 500 Internal Server Error"),
        (Response(429, {}, {"Retry-After": "86400"}), "requires a pause of 86400 s"),
        (Response(429, {}, {"Retry-After": "9" * 400}), "answered 429 Too Many Requests"),
        (Response(999, {}), "answered 999;"),
        (Response(200, b"{}", {"content-length": "100"}), r"does not answer \(IncompleteRead\)"),
    ],
)
def test_a_hostile_response_is_one_sentence_with_the_address(
    response: Response,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("DECISION_TOKEN", TOKEN)
    with serving(lambda path, body: response) as server:
        url = f"{server.url}/v1/decisions"
        with pytest.raises(TrialError, match=message) as error:
            ask(tmp_path, url, token="${env:DECISION_TOKEN}")
    assert str(error.value).startswith(f"reference {url}: ")
    for text in (str(error.value), caplog.text):
        assert "\n" not in str(error.value)
        assert CANARY not in text
        assert TOKEN not in text
    assert not list((tmp_path / "services").rglob("*.json"))


def test_an_endless_response_ends_at_the_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(1000))
    monkeypatch.setattr(service_client.time, "monotonic", lambda: float(next(seconds)))
    with serving(lambda path, body: Response(200, b" " * (4 << 20))) as server:
        with pytest.raises(TrialError, match="takes more than 5 s"):
            ask(tmp_path, f"{server.url}/v1/decisions", timeout_s=5)


@contextmanager
def endless(start: bytes, piece: bytes) -> Iterator[str]:
    """Serve one connection at a time: the start of a response, then a piece for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client, suppress(OSError):
                        client.sendall(start)
                        while True:
                            client.sendall(piece)
                            time.sleep(0.001)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1/decisions"
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-A: ", b"a"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-A: a\r\n"),
    ],
    ids=["responses before the response", "a head", "trailers"],
)
def test_a_response_without_an_end_is_given_up_wherever_it_goes_on(
    start: bytes, piece: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_client, "_TRIES", 2)
    with endless(start, piece) as url:
        with pytest.raises(TrialError, match=r"does not answer \(TimeoutError\)"):
            ask(tmp_path, url, timeout_s=0.5)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_texts_and_token_follow_no_redirect(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DECISION_TOKEN", TOKEN)
    with serving(lambda path, body: Response(200, {})) as other:
        location = {"Location": f"{other.url}/v1/decisions"}
        with serving(lambda path, body: Response(status, {}, location)) as server:
            with pytest.raises(TrialError, match=f"answered {status} .*redirects are not followed"):
                ask(tmp_path, f"{server.url}/v1/decisions", token="${env:DECISION_TOKEN}")
    assert not other.requests


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{url: 'http://10.0.0.7/v1/decisions', model: m}", "without encryption; write https://"),
        ("{url: 'http://localhost.evil.example/decisions', model: m}", "without encryption"),
        ("{url: 'HTTP://10.0.0.7/v1/decisions', model: m}", "without encryption"),
        ("{url: 'file:///etc/decisions', model: m}", "of the form https://HOST/PATH"),
        ("{url: 'https://h:x/decisions', model: m}", "of the form https://HOST/PATH"),
        ('{url: "https://h/a\\r\\nx: y/decisions", model: m}', "of the form https://HOST/PATH"),
        (f"{{url: 'https://me:{TOKEN}@h/decisions', model: m}}", "no user, password, query"),
        (f"{{url: 'https://h/decisions?key={TOKEN}', model: m}}", "no user, password, query"),
        ("{url: 'https://h/${env:KEY}/decisions', model: m}", "no user, password, query or refer"),
        ("{url: 'http://127.0.0.1@h.example/decisions', model: m}", "no user, password, query"),
        ("{url: 'https://h/v1', model: m}", "ends with neither /decisions nor /systemone"),
        (f"{{url: 'https://h/decisions', model: m, token: {TOKEN}}}", r"must be \$\{env:NAME\}"),
        (
            "{url: 'https://h/decisions', model: m}, {url: 'https://h/decisions', model: m}",
            "two have the same url and model",
        ),
    ],
)
def test_an_address_or_token_that_is_not_safe_is_refused(
    settings: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        tiny.decision_study(tmp_path, f"references=[{settings}]")
    assert TOKEN not in str(error.value)


def test_a_missing_token_is_a_mistake_before_a_study_starts(tmp_path: Path) -> None:
    reference = "{url: 'https://h/decisions', model: m, token: '${env:NOT_SET_HERE}'}"
    study = tiny.decision_study(tmp_path, f"references=[{reference}]")
    with pytest.raises(ConfigError, match=r"references\.0\.token: .*NOT_SET_HERE is not set"):
        preflight.check(study)


@pytest.mark.parametrize("token", ["tök€n", "two words", "line\nx: y"])
def test_a_token_that_no_header_may_have_is_not_sent_or_repeated(
    token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DECISION_TOKEN", token)
    with serving(lambda path, body: Response(200, {})) as server:
        with pytest.raises((ConfigError, TrialError)) as error:
            ask(tmp_path, f"{server.url}/v1/decisions", token="${env:DECISION_TOKEN}")
    assert not server.requests
    assert token not in str(error.value)


def test_a_text_of_a_row_is_in_no_stored_answer_and_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def third(text: str, question: str, options: list[str]) -> list[float]:
        return [1 / len(options)] * len(options)

    with serving(answering(third)) as server:
        ask(tmp_path, f"{server.url}/v1/systemone")
    (path,) = (tmp_path / "services").rglob("*.json")
    assert json.loads(path.read_bytes())["shares"][1] == [0.5, 0.5]
    words = set(server.requests[0]["state"].split())
    assert not words & set(path.read_text().split())
    assert server.requests[0]["state"] not in caplog.text


def test_a_resume_may_change_references_and_nothing_else_of_them_reaches_a_trial(
    tmp_path: Path,
) -> None:
    study = tiny.decision_study(tmp_path)
    reference = "{url: 'https://h.example/decisions', model: m}"
    more = tiny.decision_study(tmp_path, f"references=[{reference}]")
    resume.check_settings(study, more, "run")
    assert resume.wants_more(study, more)
    assert "h.example" not in more.trial(more.base_models[0]).model_dump_json()


def test_the_token_goes_to_a_service_that_asks_for_one_and_to_no_other(tmp_path: Path) -> None:
    def answer(path: str, body: Body) -> Response:
        return Response(401, {})

    with serving(answer) as server:
        with pytest.raises(TrialError, match="answered 401"):
            ask(tmp_path, f"{server.url}/v1/decisions")
    assert "authorization" not in server.headers[0]
