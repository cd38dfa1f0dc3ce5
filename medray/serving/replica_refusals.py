"""The refusals of a replica: what its errors mean to a client. Imports no Ray."""

import logging

from medray.errors import DataError, ServingError
from medray.registry.explanation import LabelError, LongTextError
from medray.serving.chat import TooLongError
from medray.serving.refusals import Refusal
from medray.serving.schemas import RETRY_AFTER_S
from medray.serving.streams import LateError, OverloadedError, TooManyTokensError
from medray.tasks.base.citations import SentencesError
from medray.tasks.base.questions import QuestionError, SameOptionsError
from medray.text.prompts import NoRoomError

log = logging.getLogger(__name__)
# What a request with typed questions can cause.
QUESTION_ERRORS = (DataError, NoRoomError, QuestionError, SentencesError, ServingError)


def wrong_route(reason: str) -> Refusal:
    return Refusal(400, "wrong_route", f"model: {reason}", param="model")


def refusal_of(err: Exception) -> Refusal:
    if isinstance(err, SameOptionsError):
        message = "two options of a question are the same tokens for this release; rename one"
        return Refusal(422, "invalid_request", message, param="questions")
    if isinstance(err, NoRoomError):
        message = "a question leaves no room for its text; shorten its instructions or options"
        return Refusal(413, "too_many_tokens", message, param="questions")
    # Only a text without tokens causes it. Its message counts rows of a batch, which the client
    # cannot see.
    if isinstance(err, DataError):
        message = "a text has no token that the model can read; leave it out"
        return Refusal(422, "invalid_request", message)
    if isinstance(err, QuestionError):
        place = str(err).partition(":")[0]
        return Refusal(400, "unknown_question", str(err), param=place)
    if isinstance(err, SentencesError):
        return Refusal(400, "too_many_sentences", str(err), param="citations")
    if isinstance(err, LabelError):
        return Refusal(400, "unknown_label", str(err), param="label")
    if isinstance(err, TooManyTokensError | LongTextError):
        return Refusal(413, "too_many_tokens", str(err))
    if isinstance(err, TooLongError):
        return Refusal(400, "invalid_request", str(err), code="context_length_exceeded")
    if isinstance(err, OverloadedError):
        return Refusal(
            429, "overloaded", "too many texts are waiting; try again later", RETRY_AFTER_S
        )
    if isinstance(err, LateError):
        message = "the answer was not ready in time; send less text, or try again later"
        return Refusal(504, "deadline_exceeded", message)
    log.error("%s while generating a text", type(err).__name__)
    return Refusal(500, "internal_error", "the answer ended early; the server's log has the cause")
