"""Functions for tasks that find mentions: their HTTP route, their scores, and the predictions that
a checkpoint keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Literal

from medray.client.answers import MentionAnswer, MentionsAnswer
from medray.errors import DataError
from medray.evaluation import mention_scores as scorer
from medray.evaluation.bootstrap import Tallies
from medray.evaluation.metrics import Metrics
from medray.tasks.base.route import DisclaimedResponse, Route, TextRequest, TextResponse
from medray.types import Example, Prediction

Metric = Literal["mention_f1", "mention_f1_overlap"]


class ExtractRequest(TextRequest):
    pass


class ExtractResponse(TextResponse, DisclaimedResponse):
    predictions: tuple[MentionsAnswer, ...]


ROUTES = (Route("/v1/extract", ExtractRequest, ExtractResponse),)


def respond(predictions: Sequence[Prediction]) -> tuple[MentionsAnswer, ...]:
    answers = (
        tuple(MentionAnswer(**asdict(mention)) for mention in row.mentions) for row in predictions
    )
    return tuple(MentionsAnswer(mentions=mentions) for mentions in answers)


def kinds_of(examples: Sequence[Example], train: Sequence[Example], task: str) -> tuple[str, ...]:
    """Return the kinds of mentions in the data. Raise if no training row has mentions, since the
    labels could then be those of a classification."""
    kinds = tuple(sorted({label for example in examples for label in example.labels}))
    if not kinds or (train and not any(example.mentions for example in train)):
        row = "training row" if kinds else "row"
        raise DataError(
            f"no {row} has a mention, and task {task} needs annotated texts; use data.format spans "
            "or pubtator"
        )
    return kinds


def tallies(
    predictions: Sequence[Prediction],
    examples: Sequence[Example],
    rates: Mapping[str, tuple[str, str]] | None = None,
) -> Tallies:
    assert [row.row_id for row in predictions] == [example.id for example in examples]
    return scorer.tally(
        [row.row_id for row in predictions],
        _pairs(predictions, examples),
        rates or {},
        [row.figures for row in predictions],
    )


def score(
    predictions: Sequence[Prediction],
    examples: Sequence[Example],
    kinds: Sequence[str],
    rates: Mapping[str, tuple[str, str]] | None = None,
) -> Metrics:
    return scorer.score(tallies(predictions, examples, rates), _pairs(predictions, examples), kinds)


def keep(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return the predictions with the positions of mentions, without their text."""
    return [
        replace(row, text="", mentions=tuple(replace(mention, text="") for mention in row.mentions))
        for row in predictions
    ]


def _pairs(
    predictions: Sequence[Prediction], examples: Sequence[Example]
) -> list[scorer.MentionPair]:
    return [
        (example.mentions, row.mentions) for row, example in zip(predictions, examples, strict=True)
    ]
