"""The route that explains an answer: how much each word of one text speaks for a label. Imports no
Ray."""

import time
from dataclasses import replace

from fastapi import FastAPI, Request
from fastapi.responses import Response

from medray.serving import notes
from medray.serving.refusals import Refusal, error_response
from medray.serving.routes import ERRORS, choose, read_request_id
from medray.serving.schemas import EXPLAIN_PATH
from medray.serving.service import Event, Service
from medray.tasks.base.route import ExplainRequest, ExplainResponse


def add_explanation_route(api: FastAPI, service: Service, *, mask_identifiers: bool) -> None:
    async def explain(body: ExplainRequest, request: Request) -> Response:
        start, request_id = time.perf_counter(), read_request_id(request.headers)
        reference = choose(service.references, body.model)
        outcome = (
            reference
            if isinstance(reference, Refusal)
            else await _explain(service, reference, body, mask_identifiers)
        )
        # Never the client's own text: each value would become a metric of its own.
        model = reference if isinstance(reference, str) else ""
        seconds = time.perf_counter() - start
        if isinstance(outcome, Refusal):
            service.record(Event(request_id, model, outcome.status, seconds, is_explanation=True))
            return error_response(outcome, request_id)
        service.record(
            Event(
                request_id,
                model,
                200,
                seconds,
                outcome.release,
                outcome.version,
                is_explanation=True,
            )
        )
        return Response(
            outcome.model_dump_json(),
            media_type="application/json",
            headers={"x-request-id": request_id},
        )

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
