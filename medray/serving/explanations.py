"""The route that explains an answer: how much each word of one text speaks for a label. Imports no
Ray."""

from dataclasses import replace

from fastapi import FastAPI, Request
from fastapi.responses import Response

from medray.serving import notes
from medray.serving.refusals import Refusal, error_response
from medray.serving.routes import ERRORS, ReleaseCall
from medray.serving.schemas import EXPLAIN_PATH
from medray.serving.service import Service
from medray.tasks.base.route import ExplainRequest, ExplainResponse


def add_explanation_route(api: FastAPI, service: Service, *, mask_identifiers: bool) -> None:
    async def explain(body: ExplainRequest, request: Request) -> Response:
        call = ReleaseCall(service, request, body.model, is_explanation=True)
        outcome = call.refusal or await _explain(service, call.model, body, mask_identifiers)
        call.record(outcome)
        if isinstance(outcome, Refusal):
            return error_response(outcome, call.request_id)
        return call.response(outcome)

    api.add_api_route(
        EXPLAIN_PATH, explain, methods=["POST"], response_model=ExplainResponse, responses=ERRORS
    )


async def _explain(
    service: Service, reference: str, request: ExplainRequest, mask_identifiers: bool
) -> ExplainResponse | Refusal:
    if not mask_identifiers:
        return await service.explain(reference, request)
    substitute = await notes.mask_text(request.text)
    outcome = await service.explain(reference, request.model_copy(update={"text": substitute.text}))
    if isinstance(outcome, Refusal):
        return outcome
    words = []
    for word in outcome.words:
        start, end = substitute.original(word.start, word.end)
        words.append(replace(word, start=start, end=end, text=request.text[start:end]))
    return outcome.model_copy(update={"words": tuple(words), "masked": substitute.counts})
