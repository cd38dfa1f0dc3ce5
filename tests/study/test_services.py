"""Services that answer typed questions, as references of a study."""

import json
from pathlib import Path

import pytest
from support import decision_server, in_process, tiny
from support.decision_server import Body, Response, Server, answering, serving

from medray.config.reference import ReferenceConfig
from medray.config.study import StudyConfig
from medray.data import dataset
from medray.errors import ConfigError, TrialError
from medray.evaluation import leaderboard_files
from medray.reports import html_report, study_data
from medray.study import preflight
from medray.study.run import Run
from medray.study.services import DecisionService
from medray.tasks.base import protocol as tasks
from medray.tasks.base.protocol import Task

TOKEN = "Z9-canary-token-0f"


def shares(text: str, question: str, options: list[str]) -> list[float]:
    """Answer the questions of `tiny.typed_questions` well, but not always."""
    words = text.split()
    if question == "surgery":
        return [0.9, 0.1] if "surgery" in words else [0.2, 0.8]
    if question == "growth":
        at = min(words.count("growth"), 2)
    else:
        signs = list(tiny.SIGNS.values())
        at = next(place for place, own in enumerate(signs) if set(own) & set(words))
    return [0.8 if place == at else 0.1 for place in range(3)]


def task_and_rows(study: StudyConfig) -> tuple[Task, dataset.Dataset]:
    rows = dataset.load(study.data)
    return tasks.fit(study.task, rows.label_sets(), rows.train), rows


def service(
    server: Server, folder: Path, route: str = "decisions", **settings: object
) -> DecisionService:
    config = ReferenceConfig(url=f"{server.url}/v1/{route}", model="big", **settings)
    return DecisionService(config, folder / "services", sleep=lambda seconds: None)


def test_a_study_says_whether_it_beats_a_service_and_what_the_service_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DECISION_TOKEN", TOKEN)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing on loopback goes there
    with serving(answering(shares)) as server:
        url = f"{server.url}/v1/decisions"
        reference = (
            f"{{url: {url}, model: big, token: '${{env:DECISION_TOKEN}}', price_per_million: 5}}"
        )
        study = tiny.decision_study(
            tmp_path,
            "train.epochs=1",
            f"references=[{reference}]",
            num_rows=120,
        )
        preflight.check(study)
        outcome = in_process.run(study)
        name = f"big at {url.removeprefix('http://')}"
        entry = next(entry for entry in outcome.board.entries if entry.name == name)
        assert entry.validation["accuracy"] == entry.test["accuracy"] == 1
        assert entry.test_interval is not None
        assert {pair.split for pair in outcome.board.comparisons if pair.other == name} == {
            "validation",
            "test",
        }
        # A better service is no baseline, so it stops no publication.
        (better,) = (
            pair
            for pair in outcome.board.comparisons
            if pair.other == name and pair.split == "validation"
        )
        assert better.comparison.difference < 0
        assert not better.is_tie
        assert name not in [entry.name for entry in outcome.board.better_baselines]
        assert outcome.board.best_baseline is not None
        assert outcome.board.best_baseline.name != name
        assert entry.service is not None
        texts = {body["input"] for body in server.requests}
        assert len(server.requests) == len(texts) == entry.service.num_requests == 48
        assert entry.service.input_tokens == sum(len(text.split()) for text in texts)
        tokens = entry.service.num_tokens
        assert entry.service.cost == pytest.approx(tokens * 5e-6)

        # Only texts and questions are sent, to the validation and test rows alone.
        assert all(body.keys() == {"model", "input", "questions"} for body in server.requests)
        rows = dataset.load(study.data)
        assert texts == {row.text for row in (*rows.validation, *rows.unlabelled_test())}
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {TOKEN}"}

        text = leaderboard_files.to_markdown(outcome.board)
        assert f"winner minus the service ({name}) on the same test rows" in text
        assert f"read 48 texts with {tokens:,} tokens, which cost" in text
        page = html_report.render(html_report.compose(study_data.gather(outcome.run)))
        assert f"{tokens:,}" in page
        for path in (path for path in tmp_path.rglob("*") if path.is_file()):
            assert TOKEN.encode() not in path.read_bytes(), path
        for path in (outcome.run.storage_dir / "services").rglob("*.json"):
            assert set(json.loads(path.read_bytes())) == {
                "shares",
                "input_tokens",
                "output_tokens",
                "seconds",
            }

        # A resumed study asks nothing twice, and a new model about everything.
        again = study.model_copy(
            update={"references": (*study.references, _with_model(study.references[0], "small"))}
        )
        second = in_process.run(again, here=Run.resume(again))
        assert len(server.requests) == 2 * 48
        assert {body["model"] for body in server.requests[48:]} == {"small"}
    board = leaderboard_files.from_json(leaderboard_files.to_json(second.board), "board")
    assert sum(entry.service is not None for entry in board.entries) == 2
    assert entry.test == next(row for row in board.entries if row.name == name).test


def _with_model(reference: ReferenceConfig, model: str) -> ReferenceConfig:
    return reference.model_copy(update={"model": model})


def test_a_service_that_fails_ends_a_study_before_it_trains(tmp_path: Path) -> None:
    with serving(lambda path, body: Response(401, {"error": "no"})) as server:
        url = f"{server.url}/v1/decisions"
        study = tiny.decision_study(tmp_path, f"references=[{{url: {url}, model: big}}]")
        run = Run.start(study)
        with pytest.raises(TrialError, match="answered 401 Unauthorized; set the reference's"):
            in_process.run(study, here=run)
    assert not run.records()
    assert len(server.requests) == 1


def test_a_task_without_questions_takes_no_reference(tmp_path: Path) -> None:
    study = tiny.instruct_study(tmp_path)
    task, rows = task_and_rows(study)
    with serving(answering(shares)) as server:
        with pytest.raises(ConfigError, match=r"task instruct has no questions to ask"):
            service(server, tmp_path).check(task, rows.validation)
    assert not server.requests


def test_both_formats_give_the_same_predictions(tmp_path: Path) -> None:
    task, rows = task_and_rows(tiny.decision_study(tmp_path))
    with serving(answering(shares)) as server:
        one, two = (
            service(server, tmp_path, route).candidate(
                task, rows.validation, rows.unlabelled_test()
            )
            for route in ("decisions", "systemone")
        )
    assert one.test == two.test
    assert task.score(one.validation, rows.validation).values["accuracy"] == 1


def test_a_refusal_is_an_abstention_and_no_right_answer(tmp_path: Path) -> None:
    study = tiny.decision_study(tmp_path)
    task, rows = task_and_rows(study)
    first = rows.validation[0]

    def mostly(text: str, question: str, options: list[str]) -> list[float] | None:
        return None if text == first.text else shares(text, question, options)

    with serving(answering(mostly)) as server:
        reference = service(server, tmp_path)
        candidate = reference.candidate(task, rows.validation, rows.unlabelled_test())
    assert reference.use().num_refusals == 3
    num_rows = len(rows.validation)
    figures = task.score(candidate.validation, rows.validation).values
    assert figures["coverage"] == figures["accuracy"] == pytest.approx(1 - 1 / num_rows)
    assert figures["answered_accuracy"] == 1
    assert candidate.entry.service is not None


def test_a_release_with_labels_is_compared_with_a_service_too(tmp_path: Path) -> None:
    task, rows = task_and_rows(tiny.choice_study(tmp_path))

    def label(text: str, question: str, options: list[str]) -> list[float] | None:
        if text == rows.validation[0].text:
            return None
        place = sum(map(ord, text)) % len(options)
        return [0.6 if at == place else 0.4 / (len(options) - 1) for at in range(len(options))]

    with serving(answering(label)) as server:
        candidate = service(server, tmp_path).candidate(
            task, rows.validation, rows.unlabelled_test()
        )
    refusal, *others = candidate.validation
    assert refusal.labels == ()
    assert all(max(row.probabilities) == pytest.approx(0.6) for row in others)
    assert [question["type"] for question in server.requests[0]["questions"]] == ["choice"]
    task.score(candidate.validation, rows.validation)


def test_a_stored_answer_that_does_not_fit_is_asked_again(tmp_path: Path) -> None:
    task, rows = task_and_rows(tiny.decision_study(tmp_path))
    with serving(answering(shares)) as server:
        for content in (None, b"", b"[]", b'{"shares": [[1], [2], [3]]}', b"\xff", b"[" * 100_000):
            for path in (tmp_path / "services").rglob("*.json"):
                assert content is not None
                path.write_bytes(content)
            service(server, tmp_path).check(task, rows.validation)
        assert len(server.requests) == 6
        service(server, tmp_path).check(task, rows.validation)
        assert len(server.requests) == 6


def test_a_busy_service_is_asked_again_after_the_pause_that_it_requires(tmp_path: Path) -> None:
    task, rows = task_and_rows(tiny.decision_study(tmp_path))
    busy = iter([Response(429, {}, {"Retry-After": "7"}), Response(503, {}), Response(500, {})])
    pauses: list[float] = []

    def answer(path: str, body: Body) -> Response:
        return next(busy, None) or answering(shares)(path, body)

    with decision_server.serving(answer) as server:
        busy_service = service(server, tmp_path)
        busy_service.sleep = pauses.append
        busy_service.check(task, rows.validation)
    assert pauses == [7, 2, 4]
