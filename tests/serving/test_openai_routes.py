"""OpenAI's routes over a chat service without a model, called by OpenAI's own client."""

import json
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient
from support.fake_chat import WARNING, Service

from medray.serving import auth
from medray.serving.api import make_api
from medray.serving.refusals import Refusal
from medray.serving.schemas import Limits
from medray.serving.service import TextPiece
from medray.types import Message, TokenLogprob

SECRET = "patient Jane Roe"


def http(service: Service, digests: frozenset[str] | None = None, **settings: Any) -> TestClient:
    return TestClient(
        make_api(service, Limits(), digests, **settings), raise_server_exceptions=False
    )


def client(
    service: Service, digests: frozenset[str] | None = None, **settings: Any
) -> openai.OpenAI:
    asking = http(service, digests, **settings)
    return openai.OpenAI(
        base_url="http://testserver/v1", api_key="right", http_client=asking, max_retries=0
    )


def say(openai_client: openai.OpenAI, text: str = "What is asthma?", **others: Any) -> Any:
    return openai_client.chat.completions.create(
        **{"model": "adviser", "messages": [{"role": "user", "content": text}], **others}
    )


def test_a_whole_answer_has_openais_fields_and_ours() -> None:
    service = Service()
    answer = say(client(service), max_tokens=7, temperature=0.5, top_p=0.9, seed=4, stop=["a", "b"])
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "adviser@best"
    (choice,) = answer.choices
    assert (choice.index, choice.message.role, choice.finish_reason) == (0, "assistant", "stop")
    assert choice.message.content == f"Asthma is common.\n\n{WARNING}"
    assert (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
        answer.usage.total_tokens,
    ) == (
        12,
        5,
        17,
    )
    assert (answer.release, answer.version, answer.outcome, answer.disclaimer) == (
        "adviser",
        3,
        "answered",
        WARNING,
    )
    ((reference, conversation),) = service.requests
    sampling = conversation.sampling
    assert (reference, conversation.max_tokens, conversation.whole) == ("adviser@best", 7, True)
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.stop) == (
        0.5,
        0.9,
        4,
        ("a", "b"),
    )
    assert service.num_closed == 1


@pytest.mark.document("003", "answers carry a disclaimer", where="`task.disclaimer`")
def test_a_stream_begins_with_the_role_and_ends_with_the_disclaimer_reason_and_usage() -> None:
    service = Service()
    chunks = list(say(client(service), stream=True, stream_options={"include_usage": True}))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        == f"Asthma is common.\n\n{WARNING}"
    )
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (
        len(chunks) - 2
    ) + ["stop"]
    assert [chunk.outcome for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["answered"]
    assert chunks[-2].disclaimer == WARNING
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 17
    assert not service.requests[0][1].whole
    assert all(chunk.usage is None for chunk in say(client(Service()), stream=True))


def test_events_are_json_lines_that_end_with_done() -> None:
    body = {"model": "adviser", "messages": [{"role": "user", "content": "a"}], "stream": True}
    answer = http(Service()).post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(line.removeprefix("data: "))["choices"] for line in lines[:-2])


def test_the_disclaimer_may_stay_a_field() -> None:
    answer = say(client(Service(), disclaimer_in_content=False))
    assert answer.choices[0].message.content == "Asthma is common."
    assert answer.disclaimer == WARNING


def test_a_refused_answer_has_a_field_for_it() -> None:
    service = Service(TextPiece("I can't.", 3, finish="stop", outcome="refused"))
    assert say(client(service)).outcome == "refused"
    assert service.events[0].outcome == "refused"


def test_completions_send_the_prompt_as_one_turn_streamed_and_not() -> None:
    service = Service()
    asking = client(service)
    completion = asking.completions.create(model="adviser", prompt="What is asthma?")
    assert (completion.object, completion.choices[0].finish_reason) == ("text_completion", "stop")
    assert completion.choices[0].text == f"Asthma is common.\n\n{WARNING}"
    assert service.requests[0][1].messages == (Message("user", "What is asthma?"),)
    pieces = list(
        asking.completions.create(model="adviser", prompt=["What is asthma?"], stream=True)
    )
    assert "".join(piece.choices[0].text for piece in pieces) == completion.choices[0].text
    assert pieces[-1].choices[0].finish_reason == "stop"


def test_roles_and_parts_become_turns() -> None:
    service = Service()
    messages = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What "}, {"type": "text", "text": "is it?"}],
            "name": "ann",
        },
        {"role": "assistant", "content": "Asthma."},
        {"role": "user", "content": "And now?"},
    ]
    say(client(service), messages=messages)
    assert service.requests[0][1].messages == (
        Message("system", "Be brief."),
        Message("user", "What is it?"),
        Message("assistant", "Asthma."),
        Message("user", "And now?"),
    )


def test_logprobs_come_in_the_form_of_each_route() -> None:
    first, second = (
        TokenLogprob("As", -0.5, (("As", -0.5), ("Br", -1.0))),
        TokenLogprob("\ufffd", -0.1, ()),
    )
    service = Service(
        TextPiece("As", 1, (first,)),
        TextPiece("é", 2, (second,), finish="stop", outcome="answered"),
    )
    asking = client(service)
    logprobs_of_answer = say(asking, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert [(one.token, one.logprob, one.bytes) for one in logprobs_of_answer] == [
        ("As", -0.5, [65, 115]),
        ("\ufffd", -0.1, None),
    ]
    assert [(one.token, one.logprob) for one in logprobs_of_answer[0].top_logprobs] == [
        ("As", -0.5),
        ("Br", -1.0),
    ]
    assert service.requests[0][1].sampling.logprobs == 2
    logprobs_of_chunks = [
        chunk.choices[0].logprobs for chunk in say(asking, logprobs=True, stream=True)
    ]
    assert [
        one.token
        for logprobs_of_answer in logprobs_of_chunks
        if logprobs_of_answer
        for one in logprobs_of_answer.content
    ] == ["As", "\ufffd"]
    text = asking.completions.create(model="adviser", prompt="a", logprobs=2).choices[0].logprobs
    assert (text.tokens, text.token_logprobs, text.text_offset) == (
        ["As", "\ufffd"],
        [-0.5, -0.1],
        [0, 2],
    )
    assert text.top_logprobs[0] == {"As": -0.5, "Br": -1.0}
    assert say(client(Service())).choices[0].logprobs is None


@pytest.mark.parametrize(
    ("others", "param", "part"),
    [
        ({"n": 2}, None, "n: it is not supported; leave it out or give 1"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            None,
            "tools: it is not supported",
        ),
        (
            {"response_format": {"type": "json_object"}},
            None,
            "response_format: it is not supported",
        ),
        ({"logit_bias": {"5": 1}}, None, "logit_bias: it is not supported"),
        ({"frequency_penalty": 0.5}, None, "frequency_penalty: it is not supported"),
        ({"messages": []}, "messages", "at least 1"),
        (
            {"messages": [{"role": "assistant", "content": SECRET}]},
            None,
            "the last message is from assistant; end with one from user",
        ),
        ({"messages": [{"role": "tool", "content": SECRET}]}, "messages.0.role", "user"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": SECRET}}],
                    }
                ]
            },
            None,
            "text",
        ),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"top_logprobs": 2}, None, "has no effect without logprobs"),
        ({"stop": ["a"] * 5}, None, "at most 4"),
    ],
)
def test_what_cannot_be_obeyed_is_a_400_in_openais_form_that_repeats_nothing(
    others: dict[str, Any], param: str | None, part: str
) -> None:
    service = Service()
    with pytest.raises(openai.BadRequestError) as refusal:
        say(client(service), **others)
    error = refusal.value.body
    assert isinstance(error, dict)
    assert part in error["message"]
    assert (error["type"], error["code"]) == ("invalid_request", "invalid_request")
    if param:
        assert error["param"] == param
    assert SECRET not in str(error)
    assert not service.requests


def test_fields_without_effect_and_new_fields_are_accepted() -> None:
    answer = say(
        client(Service()),
        n=1,
        presence_penalty=0,
        tools=[],
        response_format={"type": "text"},
        user="ann",
        metadata={"a": "b"},
        max_completion_tokens=5,
        extra_body={"something_new": True},
    )
    assert answer.outcome == "answered"


def test_refusals_become_the_errors_that_openais_client_knows() -> None:
    service = Service()
    asking = client(service)
    with pytest.raises(openai.NotFoundError) as missing:
        say(asking, model=SECRET)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    for status, kind in (
        (429, openai.RateLimitError),
        (400, openai.BadRequestError),
        (503, openai.InternalServerError),
    ):
        service.refusal = Refusal(
            status, "overloaded", "too many texts are waiting", 3, code="context_length_exceeded"
        )
        for stream in (False, True):
            with pytest.raises(kind) as error:
                say(asking, stream=stream)
            assert error.value.code == "context_length_exceeded"
            assert error.value.response.headers["retry-after"] == "3"
    with pytest.raises(openai.AuthenticationError):
        say(client(service, frozenset({auth.digest("another")})))
    assert say(client(Service(), frozenset({auth.digest("right")}))).outcome == "answered"
    assert [event.status for event in service.events] == [404, 429, 429, 400, 400, 503, 503]
    assert service.events[0].model == ""


@pytest.mark.parametrize(
    "end", [Refusal(503, "unavailable", "no replica could answer"), ValueError(SECRET)]
)
def test_an_answer_that_breaks_off_is_an_error_event_or_a_status(
    end: Any, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(TextPiece("Asthma", 1), end)
    chunks = []
    with pytest.raises(openai.APIError) as error:
        for chunk in say(client(service), stream=True):
            chunks.append(chunk.choices[0].delta.content)
    assert chunks[-1] == "Asthma"
    message = end.message if isinstance(end, Refusal) else "ended early"
    assert message in str(error.value)
    with pytest.raises(openai.InternalServerError, match=message):
        say(client(service))
    assert [event.status for event in service.events] == [
        503 if isinstance(end, Refusal) else 500
    ] * 2
    assert SECRET not in caplog.text + str(error.value)
    assert service.num_closed == 2


def test_an_answer_without_an_end_is_no_answer() -> None:
    service = Service(TextPiece("Asthma", 1))
    with pytest.raises(openai.InternalServerError, match="ended early"):
        say(client(service))
    assert service.events[0].status == 500


def test_every_call_is_recorded_once_with_tokens_and_without_text() -> None:
    service = Service()
    list(say(client(service), SECRET, stream=True))
    say(client(service), SECRET)
    for event in service.events:
        assert (event.status, event.release, event.version, event.outcome) == (
            200,
            "adviser",
            3,
            "answered",
        )
        assert (event.prompt_tokens, event.completion_tokens, event.labels) == (12, 5, ())
        assert event.first_token_s is not None
        assert 0 < event.first_token_s <= event.seconds
        assert SECRET not in str(event)
    assert len(service.events) == service.num_closed == 2


def test_a_client_that_disconnects_ends_the_generation_and_the_audit_log_has_it() -> None:
    service = Service()
    say(client(service), stream=True).close()
    assert service.num_closed == 1
    assert [(event.status, event.release) for event in service.events] == [(499, "adviser")]
