"""The client against a service of this process."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Generator
from typing import Any

import pytest
from fastapi import FastAPI, Response
from support import fake_service

from medray.client import (
    ChatReply,
    ChoiceAnswer,
    Citation,
    Citations,
    Client,
    Explanation,
    LabelAnswer,
    MentionAnswer,
    MentionsAnswer,
    WordShare,
)
from medray.client.asynchronous import AsyncClient
from medray.errors import ConfigError, DataError, ServingError


def test_an_answer_is_read_as_the_service_wrote_it() -> None:
    references = {card.path: reference for reference, card in fake_service.CARDS.items()}
    with fake_service.running(fake_service.api(fake_service.Service(*fake_service.CARDS))) as url:
        client = Client(url)
        labels = client.classify(["a", "b"], model=references["/v1/classify"])
        choices = client.choose(["a"], model=references["/v1/choose"])
        mentions = client.extract(["asthma", "fever"], model=references["/v1/extract"])
    label = LabelAnswer(
        label="cancer",
        labels=("cancer",),
        confidence=0.83,
        probabilities={"cancer": 0.83, "no cancer": 0.17},
    )
    assert labels.predictions == (label, label)
    (choice,) = choices.predictions
    assert isinstance(choice, ChoiceAnswer)
    assert choice.ranked[0] == choice.label
    assert choices.disclaimer
    answers = tuple(
        MentionsAnswer(mentions=fake_service.mentions_in(text)) for text in ("asthma", "fever")
    )
    assert mentions.predictions == answers
    assert all(
        isinstance(mention, MentionAnswer)
        for answer in mentions.predictions
        for mention in answer.mentions
    )


def test_decisions_are_read_with_the_fields_of_their_type() -> None:
    with fake_service.running(fake_service.api(fake_service.Service())) as url:
        client = Client(url)
        label = {
            "type": "choice",
            "name": "label",
            "instructions": "Is it about cancer?",
            "choices": [{"value": "no cancer"}, {"value": "cancer"}],
        }
        choice = client.decide("a text", [label], model="cancer")
        predicates = client.decide("high fever", model="findings@best")
        unclear = client.decide("an unclear text", model="cancer@best")
    (answer,) = choice.answers
    assert (choice.release, choice.version, choice.input_tokens) == ("cancer", 3, 2)
    assert (answer.type, answer.name, answer.choice) == ("choice", "label", "no cancer")
    assert answer.probabilities == pytest.approx({"no cancer": 2 / 3, "cancer": 1 / 3})
    assert [(one.name, one.decision, one.probability) for one in predicates.answers] == [
        ("asthma", False, 0.1),
        ("fever", True, 0.9),
    ]
    assert [one.abstained for one in unclear.answers] == [True]


def test_a_client_reads_citations_of_every_route() -> None:
    text = "A child coughs. It is asthma."
    with fake_service.running(fake_service.api(fake_service.Service())) as url:
        client = Client(url)
        turns = [{"role": "user", "content": text}]
        choice = client.choose([text, "none"], model="symptoms@best", citations=True)
        own = [
            *(one.citations for one in choice.predictions),
            client.classify([text], model="cancer", citations=True).predictions[0].citations,
            client.decide(text, model="cancer@best", citations=True).answers[0].citations,
            client.chat(turns, model="adviser@best", citations=True).citations,
            reply(client.stream(turns, model="adviser@best", citations=True)).citations,
        ]
        plain = client.chat(turns, model="adviser@best")
        assert (plain.citations, plain.confidence, plain.abstained) == (None, 0.41, True)
        assert client.choose([text], model="symptoms@best").predictions[0].citations is None
    sentence = Citation(start=16, end=29, text="It is asthma.", effect=1.5)
    assert own.pop(1) == Citations()
    assert own == [Citations(sentences=(sentence,), sufficiency=-0.01, comprehensiveness=0.25)] * 5


def test_an_explanation_is_read_with_its_text() -> None:
    with fake_service.running(fake_service.api(fake_service.Service())) as url:
        reply = Client(url).explain("not asthma", model="cancer")
    assert (reply.release, reply.version) == ("cancer", 3)
    assert reply.explanation == Explanation(
        text="not asthma",
        label="cancer",
        words=(
            WordShare(start=0, end=3, text="not", share=-0.3),
            WordShare(start=4, end=10, text="asthma", share=0.6),
        ),
        total=1.5,
        error=0.004,
    )
    assert repr(reply.explanation) == "cancer: asthma +0.60, not -0.30 (completeness error 0.4%)"


def reply(pieces: Generator[str, None, ChatReply]) -> ChatReply:
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            whole: ChatReply = end.value
            return whole


def test_a_release_without_questions_is_named() -> None:
    with fake_service.running(fake_service.api(fake_service.Service())) as url:
        with pytest.raises(ServingError, match="diseases@1 has no questions; name a release"):
            Client(url).decide("a text", model="diseases@1")


def test_the_client_imports_the_standard_library_alone() -> None:
    heavy = "'pydantic', 'torch', 'numpy', 'ray'"
    code = f"import sys, medray.client; sys.exit(any(name in sys.modules for name in ({heavy})))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_client_for_asyncio_returns_what_the_client_returns() -> None:
    references = {card.path: reference for reference, card in fake_service.CARDS.items()}

    def calls(client: Any) -> list[Any]:
        model = references["/v1/classify"]
        return [
            client.classify(["a"], model=model),
            client.choose(["a"], model=references["/v1/choose"]),
            client.extract(["asthma"], model=references["/v1/extract"]),
            client.decide("high fever", model="findings@best"),
            client.explain("a mass", model="cancer", label="no cancer"),
            client.questions("findings@best"),
            client.model(model),
            client.models(),
            client.health(),
        ]

    async def replies(url: str) -> list[Any]:
        async with AsyncClient(url) as client:
            return list(await asyncio.gather(*calls(client)))

    with fake_service.running(fake_service.api(fake_service.Service(*fake_service.CARDS))) as url:
        assert asyncio.run(replies(url)) == calls(Client(url))


def test_many_requests_of_the_client_for_asyncio_run_at_once() -> None:
    together = threading.Barrier(20)
    client = AsyncClient(connections=20)
    object.__setattr__(client, "client", _Meeting(together))

    async def call_all() -> list[dict[str, object]]:
        async with client:
            return await asyncio.gather(*(client.health() for _ in range(20)))

    assert asyncio.run(call_all()) == [{"status": "ok"}] * 20


class _Meeting:
    """A client whose calls return once as many as expected are there."""

    def __init__(self, together: threading.Barrier) -> None:
        self.together = together

    def health(self) -> dict[str, object]:
        self.together.wait(timeout=20)
        return {"status": "ok"}


def test_an_error_of_the_service_reaches_the_one_who_waits() -> None:
    async def call() -> None:
        async with AsyncClient("http://127.0.0.1:9") as client:
            await client.health()

    with pytest.raises(ServingError, match="does not answer"):
        asyncio.run(call())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": None}, "Client: None is no address of a service; give one such as http"),
        ({"url": "localhost:8000"}, "Client: 'localhost:8000' is no address"),
        ({"timeout_s": "5"}, "Client: timeout_s '5': give seconds above 0"),
        ({"timeout_s": 0}, "Client: timeout_s 0: give seconds above 0"),
    ],
)
def test_a_client_without_an_address_or_a_time_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Client(**settings)


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(Client(token="secret"))


@pytest.mark.parametrize("inputs", ["one text", None, 5, b"text", {"text": ["a"]}])
def test_inputs_that_are_no_list_are_refused_before_a_request(inputs: Any) -> None:
    with pytest.raises(DataError, match=r"texts: got a \w+; give a list, as in \[text\]"):
        Client("http://127.0.0.1:9").classify(inputs)
    with pytest.raises(DataError, match=r"messages: got a \w+; give a list"):
        Client("http://127.0.0.1:9").chat(inputs)
    with pytest.raises(DataError, match="questions: got a"):
        Client("http://127.0.0.1:9").decide("text", inputs or 5)


def test_a_value_that_json_does_not_have_is_named() -> None:
    with pytest.raises(DataError, match=r"/v1/classify: the request is no JSON .*bytes"):
        Client("http://127.0.0.1:9").classify([b"text"])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "answer", ["{}", "[]", "null", "<html>", '{"release": "a", "version": 1, "predictions": 5}']
)
def test_an_answer_of_another_program_is_named(answer: str) -> None:
    api = FastAPI()
    api.post("/{path:path}")(lambda: Response(answer, media_type="application/json"))
    api.get("/{path:path}")(lambda: Response(answer, media_type="application/json"))
    messages = [{"role": "user", "content": "hello"}]
    with fake_service.running(api) as url:
        client = Client(url)
        for call in (
            lambda: client.classify(["a"]),
            lambda: client.extract(["a"]),
            lambda: client.explain("a"),
            lambda: client.decide("a"),
            lambda: client.chat(messages),
            lambda: list(client.stream(messages)),
            lambda: client.models(),
        ):
            with pytest.raises(ServingError, match=r"is not one of a medray service|Expecting"):
                call()


def test_a_client_for_asyncio_that_is_closed_says_so() -> None:
    async def call() -> None:
        client = AsyncClient("http://127.0.0.1:9")
        client.close()
        await client.health()

    with pytest.raises(ServingError, match="AsyncClient: it is closed"):
        asyncio.run(call())
    with pytest.raises(ConfigError, match="connections 0: give one or more"):
        AsyncClient(connections=0)
