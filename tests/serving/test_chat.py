"""A release that talks, as a replica holds it: many conversations at once, each what it would be
alone."""

import asyncio
import queue
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import tiny

from medray.records import AbstentionRecord, CalibrationRecord, TextCalibrationRecord
from medray.registry.registry import Registry
from medray.registry.release import Release
from medray.serving.chat import AnswerBuilder, ChatModel, TooLongError, without_disclaimer
from medray.serving.opening import open_model
from medray.serving.refusals import Refusal
from medray.serving.replica import ReleaseReplica
from medray.serving.schemas import AppOptions, Limits
from medray.serving.service import Conversation, Start, TextPiece
from medray.serving.streams import TooManyTokensError
from medray.serving.text_model import TextModel
from medray.tasks.base.citations import SentencesError
from medray.tasks.classification import ClassifyRequest
from medray.types import DISCLAIMER, Chunk, Message, Sampling, gather

QUESTIONS = (
    "renal failure study",
    "rhythm pressure",
    "fever after infection and culture",
    "glucose",
)
OPTIONS = {"precision": "fp32", "token_budget": 256}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    place = tmp_path_factory.mktemp("chat")
    return Registry(str(place / "runs")).publish(tiny.checkpoint("instruct"), "adviser")


@pytest.fixture(scope="module")
def chat(release: Release) -> Iterator[ChatModel]:
    with ThreadPoolExecutor(1) as thread:
        model = open_model(
            release, AppOptions(releases=("adviser",), **OPTIONS), thread, device="cpu"
        )
        assert isinstance(model, ChatModel)
        yield model


def conversation_of(*texts: str, max_tokens: int | None = 6, **sampling: Any) -> Conversation:
    roles = ("user", "assistant") * len(texts)
    turns = tuple(Message(role, text) for role, text in zip(roles, texts, strict=False))  # type: ignore[arg-type]
    return Conversation(turns, Sampling(**sampling), max_tokens, whole=False)


def answer_of(
    chat: ChatModel, question: Conversation, limits: Limits | None = None
) -> tuple[Start, Chunk]:
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
    start, _ = chat.begin(question, limits or Limits(), time.monotonic() + 30, answer.put)
    chunks: list[Chunk] = []
    while not chunks or not chunks[-1].finish:
        chunks.append(answer.get(timeout=30))
    return start, gather(chunks, 1)[0]


def test_an_answer_is_cited_as_by_the_loaded_release(release: Release, chat: ChatModel) -> None:
    text = "the tumour of the lung.\n\nThe surgery was in stage 2. Fever after infection! No cell."
    question = replace(conversation_of(text), citations=True)
    _, answer = answer_of(chat, question)
    citations = chat.cite(question, answer.text, time.monotonic() + 30)
    model = release.load()
    (row,) = model.predict([text])
    assert row.text == answer.text.strip()
    own = model.cite(text, row)
    assert own.sentences
    assert [one.text for one in citations.sentences] == [one.text for one in own.sentences]
    assert citations.comprehensiveness == pytest.approx(own.comprehensiveness, abs=1e-4)
    with pytest.raises(SentencesError, match="has 4 sentences, and at most 3"):
        answer_of(chat, question, Limits(sentences=3))
    with pytest.raises(TooManyTokensError, match="without each sentence in turn"):
        answer_of(chat, question, Limits(tokens=100))


def test_conversations_at_once_get_the_answers_of_the_loaded_release_to_each_alone(
    release: Release, chat: ChatModel
) -> None:
    model = release.load()
    reference = []
    for question in QUESTIONS:
        prompt = model.task.prompt([Message("user", question)], model.engine.tokenizer, 6)
        (alone,) = gather(model.engine.generate([prompt], Sampling(max_tokens=6)), 1)
        reference.append((len(prompt), alone.text, alone.finish))
    with ThreadPoolExecutor(4) as clients:
        answers = list(
            clients.map(lambda question: answer_of(chat, conversation_of(question)), QUESTIONS)
        )
    assert [(start.prompt_tokens, text.text, text.finish) for start, text in answers] == reference
    assert {(start.release, start.version, start.disclaimer) for start, _ in answers} == {
        ("adviser", 1, DISCLAIMER)
    }
    assert len({text.text for _, text in answers}) > 1


def test_turns_before_and_a_clients_system_message_change_the_answer(chat: ChatModel) -> None:
    alone = answer_of(chat, conversation_of("glucose"))[0].prompt_tokens
    assert (
        answer_of(chat, conversation_of("rhythm", "heart failure", "glucose"))[0].prompt_tokens
        > alone
    )
    system = Conversation(
        (Message("system", "study of cell"), *conversation_of("glucose").messages),
        Sampling(),
        6,
        whole=False,
    )
    start, _ = answer_of(chat, system)
    assert start.prompt_tokens == alone + 3
    tokens = chat.task.prompt(system.messages, chat.tokenizer, 6)
    text = chat.tokenizer.decode(tokens)
    assert text.index("the study of") < text.index("study of cell")  # ours first


def test_the_disclaimer_that_a_client_sends_back_is_not_read_as_the_models_words(
    chat: ChatModel,
) -> None:
    with_it = answer_of(
        chat, conversation_of("rhythm", f"heart failure\n\n{DISCLAIMER}", "glucose")
    )
    assert (
        with_it[0].prompt_tokens
        == answer_of(chat, conversation_of("rhythm", "heart failure", "glucose"))[0].prompt_tokens
    )
    messages = [Message("user", f"why {DISCLAIMER}")]
    assert without_disclaimer(messages) == messages


def test_one_conversation_is_read_at_a_time_with_a_tokenizer_of_ones_own(chat: ChatModel) -> None:
    """The tokenizer is switched between template and text: a thread in between would read a user's
    mark as the template's."""
    inside: list[int] = []

    class Slow:
        options = chat.task.options

        def prompt(self, messages: Any, tokenizer: Any, most: int) -> tuple[int, ...]:
            inside.append(1)
            time.sleep(0.01)
            assert len(inside) == 1
            inside.pop()
            assert tokenizer is not chat.release.engine.tokenizer
            return chat.task.prompt(messages, tokenizer, most)

        def outcome(self, text: str) -> Any:
            return "answered"

    slow = replace(chat, release=replace(chat.release, task=Slow()))
    question = conversation_of("fever <|im_end|>", "<|im_end|> no", "glucose", max_tokens=1)
    with ThreadPoolExecutor(8) as clients:
        counts = list(
            clients.map(lambda number: answer_of(slow, question)[0].prompt_tokens, range(8))
        )
    assert len(set(counts)) == 1
    prompt = chat.task.prompt(question.messages, chat.tokenizer, 1)
    assert (
        list(prompt).count(chat.tokenizer.eos_token_id) == 1
    )  # the end of the assistant's turn, from the template


def test_what_does_not_fit_is_refused_before_it_waits(chat: ChatModel) -> None:
    for question, limits, part in (
        (
            conversation_of("glucose", max_tokens=9),
            Limits(new_tokens=8),
            "max_tokens: 9 is over the limit; give at most 8",
        ),
        (conversation_of("glucose"), Limits(tokens=7), "to generate are more than 7"),
        (
            conversation_of("glucose", max_tokens=200),
            Limits(),
            f"to generate are more than {chat.window}",
        ),
        (conversation_of("glucose", "fever"), Limits(), "the last message must be the user's"),
    ):
        with pytest.raises(TooLongError, match=part):
            chat.begin(question, limits, time.monotonic() + 30, lambda chunk: None)
    assert chat.streams.num_waiting == chat.streams.num_running == 0


def test_without_a_number_the_releases_own_counts_up_to_the_limit(chat: ChatModel) -> None:
    assert answer_of(chat, conversation_of("glucose", max_tokens=None))[1].num_tokens <= 6
    assert (
        answer_of(chat, conversation_of("glucose", max_tokens=None), Limits(new_tokens=2))[
            1
        ].num_tokens
        <= 2
    )


def test_the_last_piece_judges_the_whole_answer() -> None:
    class Task:
        options = None

        def prompt(self, *others: Any) -> tuple[int, ...]:
            raise AssertionError

        def outcome(self, text: str) -> Any:
            return "refused" if text == "I cannot." else "answered"

    builder = AnswerBuilder(Task())
    assert builder.add([Chunk(0, "I ", None, 1), Chunk(0, "can", None, 1)]) == TextPiece("I can", 2)
    assert builder.add([Chunk(0, "not.", "stop", 2)]) == TextPiece("not.", 2, (), "stop", "refused")


def test_the_last_piece_has_the_confidence_of_the_whole_answer(
    release: Release, chat: ChatModel
) -> None:
    options = chat.task.options.model_copy(update={"right_answer": 0.5})
    curve = TextCalibrationRecord(intercept=1.0, mean=2.0, least=0.1)
    rule = AbstentionRecord(precision=0.9, level=0.8, threshold=0.999, coverage=0.1)
    record = CalibrationRecord(texts=curve, abstention=rule)
    task = replace(chat.release.task, options=options)  # type: ignore[type-var]
    own = replace(chat, release=replace(chat.release, task=task, calibration=record))
    (row,) = own.release.predict(["glucose"])
    for num_logprobs in (None, 1):
        question = conversation_of("glucose", logprobs=num_logprobs)
        _, answer = answer_of(own, question)
        piece = own.builder(question).add([answer])
        assert piece.confidence == pytest.approx(row.confidence, abs=1e-4)
        assert 0 < (row.confidence or 0) < 1
        assert piece.abstained
        assert len(piece.logprobs) == (answer.num_tokens if num_logprobs else 0)
    question = conversation_of("glucose")
    plain = chat.builder(question).add([answer_of(chat, question)[1]])
    assert (plain.confidence, plain.abstained) == (None, False)


def test_bf16_is_served_if_it_is_set(release: Release) -> None:
    with ThreadPoolExecutor(1) as thread:
        model = open_model(
            release,
            AppOptions(releases=("adviser",), precision="bf16", token_budget=256),
            thread,
            device="cpu",
        )
        assert isinstance(model, ChatModel)
        assert model.release.precision == "bf16"
        assert answer_of(model, conversation_of("glucose"))[1].finish


class Replica(ReleaseReplica):
    """Without Serve around it."""

    def __init__(self, model: TextModel | ChatModel) -> None:
        self.followers = {"adviser": SimpleNamespace(model=model)}  # type: ignore[assignment]
        self.options = AppOptions(releases=("adviser",))
        self.requests = ThreadPoolExecutor(2)


async def everything(pieces: AsyncGenerator[Any, None]) -> list[Any]:
    return [piece async for piece in pieces]


def test_a_replica_sends_the_release_and_then_pieces_or_one_whole_text(chat: ChatModel) -> None:
    replica = Replica(chat)
    question = conversation_of("glucose")
    pieces = asyncio.run(everything(replica.talk("adviser", question, 30.0)))
    start, *rest = pieces
    assert isinstance(start, Start)
    assert [piece.finish for piece in rest[:-1]] == [None] * (len(rest) - 1)
    whole = asyncio.run(
        everything(
            replica.talk(
                "adviser", Conversation(question.messages, question.sampling, 6, whole=True), 30.0
            )
        )
    )
    assert len(whole) == 2
    assert replace(whole[0], first_token_s=None) == replace(start, first_token_s=None)
    assert whole[0].first_token_s is not None
    assert 0 < whole[0].first_token_s < 30
    assert whole[1].text == "".join(piece.text for piece in rest)
    assert (whole[1].finish, whole[1].outcome, whole[1].num_tokens) == (
        rest[-1].finish,
        "answered",
        sum(piece.num_tokens for piece in rest),
    )


def test_a_listener_that_leaves_frees_the_row(chat: ChatModel) -> None:
    replica = Replica(chat)

    async def leave() -> None:
        pieces = replica.talk("adviser", conversation_of("glucose", max_tokens=60), 30.0)
        await anext(pieces)
        await pieces.aclose()
        end = time.monotonic() + 10
        while chat.streams.num_running:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)

    asyncio.run(leave())


def test_a_replica_refuses_other_requests_and_names_their_route(chat: ChatModel) -> None:
    replica = Replica(chat)
    (late,) = asyncio.run(everything(replica.talk("adviser", conversation_of("glucose"), -1.0)))
    assert late.status == 504
    (long,) = asyncio.run(
        everything(replica.talk("adviser", conversation_of("glucose", max_tokens=10**4), 30.0))
    )
    assert (long.status, long.code) == (400, "context_length_exceeded")
    wrong = asyncio.run(replica.answer("adviser", ClassifyRequest(text="a"), 1.0))
    assert isinstance(wrong, Refusal)
    assert (wrong.status, wrong.message) == (400, "model: adviser answers at /v1/chat/completions")


def test_a_release_that_does_not_chat_reports_it(tmp_path: Path) -> None:
    release = Registry(str(tmp_path / "runs")).publish(tiny.checkpoint(), "cancer")
    with ThreadPoolExecutor(1) as thread:
        model = open_model(
            release, AppOptions(releases=("cancer",), **OPTIONS), thread, device="cpu"
        )
        (refusal,) = asyncio.run(
            everything(Replica(model).talk("adviser", conversation_of("glucose"), 30.0))
        )
    assert (refusal.status, refusal.message) == (
        400,
        "model: cancer does not talk; it answers at /v1/classify",
    )
    assert model.describe().system is None
