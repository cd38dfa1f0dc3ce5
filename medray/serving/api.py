"""The HTTP API of a `Service`. Every response and error has a typed body. Imports no Ray."""

import asyncio
import time
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib import metadata

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from medray.serving.cards import ReleaseCard, ReleaseList, ServedCard, Unavailable
from medray.serving.decisions import add_question_routes
from medray.serving.explanations import add_explanation_route
from medray.serving.middleware import Guard, UnexpectedErrors
from medray.serving.openai_decisions import DecisionsRequest, example_request
from medray.serving.page import home, reference
from medray.serving.refusals import Refusal, error_response, on_http_exception, on_invalid_body
from medray.serving.routes import (
    ERRORS,
    add_completion_routes,
    add_text_routes,
    choose,
    read_request_id,
)
from medray.serving.schemas import (
    ErrorBody,
    Health,
    Limits,
    ModelCard,
    ModelDetail,
    ModelList,
    SystemOneModel,
)
from medray.serving.service import Service
from medray.serving.systemone import SystemOneRequest

_NOTICE = "medray is research software, not a medical device."


def make_api(
    service: Service,
    limits: Limits,
    digests: frozenset[str] | None,
    *,
    hosts: tuple[str, ...] | None = None,
    disclaimer_in_content: bool = True,
    mask_identifiers: bool = False,
    explanations: bool = False,
) -> FastAPI:
    api = FastAPI(
        title="medray",
        version=metadata.version("medray"),
        description=_NOTICE,
        docs_url=None,
        redoc_url=None,
    )
    _add_pages(api, service)
    _add_information(api, service)
    add_text_routes(api, service, limits, mask_identifiers=mask_identifiers)
    add_question_routes(
        api,
        service,
        limits,
        (DecisionsRequest, SystemOneRequest),
        mask_identifiers=mask_identifiers,
    )
    if explanations:
        add_explanation_route(api, service, mask_identifiers=mask_identifiers)
    add_completion_routes(
        api,
        service,
        limits,
        with_disclaimer=disclaimer_in_content,
        mask_identifiers=mask_identifiers,
    )
    api.add_exception_handler(RequestValidationError, on_invalid_body)
    api.add_exception_handler(HTTPException, on_http_exception)
    api.add_middleware(UnexpectedErrors)
    api.add_middleware(Guard, body_bytes=limits.body_bytes, digests=digests, hosts=hosts)
    return api


def _add_pages(api: FastAPI, service: Service) -> None:
    """Add the HTML pages. At `/`, clients that do not accept HTML get JSON."""

    @api.head("/", include_in_schema=False)
    @api.get("/", include_in_schema=False)
    async def root(request: Request) -> Response:
        if home.is_wanted(request.headers):
            return Response(home.html(), media_type="text/html", headers=home.headers())
        about = {
            "service": "medray",
            "version": api.version,
            "models": service.references,
            "docs": "/docs",
            "notice": _NOTICE,
        }
        return JSONResponse(about, headers={"vary": "accept"})

    @cache
    def routes() -> str:
        return reference.html(api.openapi())

    @api.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(routes(), media_type="text/html", headers=home.headers())


def _add_information(api: FastAPI, service: Service) -> None:
    start = int(time.time())

    @api.get("/v1/releases", responses={401: {"model": ErrorBody}})
    async def releases() -> ReleaseList:
        cards = await asyncio.gather(*map(service.card, service.references))
        entries = list(zip(service.references, cards, strict=True))
        return ReleaseList(
            data=tuple(
                ServedCard(id=name, request=example_request(name, card.questions), **dict(card))
                for name, card in entries
                if isinstance(card, ReleaseCard)
            ),
            unavailable=tuple(
                Unavailable(id=name, message=card.message)
                for name, card in entries
                if isinstance(card, Refusal)
            ),
        )

    @api.get("/v1/models")
    async def models() -> ModelList:
        day = datetime.fromtimestamp(start, UTC).date().isoformat()
        return ModelList(
            data=tuple(ModelCard(id=reference, created=start) for reference in service.references),
            models=tuple(
                SystemOneModel(
                    name=reference,
                    description="a release of medray; /v1/releases shows what it answers",
                    release_date=day,
                )
                for reference in service.references
            ),
        )

    @api.get("/v1/models/{model}", responses=ERRORS, response_model=ModelDetail)
    async def model(model: str, request: Request) -> Response:
        reference = choose(service.references, model)
        about = reference if isinstance(reference, Refusal) else await service.describe(reference)
        if isinstance(about, Refusal):
            return error_response(about, read_request_id(request.headers))
        detail = ModelDetail(id=str(reference), created=start, **asdict(about))
        return Response(detail.model_dump_json(), media_type="application/json")

    @api.head("/healthz", include_in_schema=False)  # some load balancers send it
    @api.get("/healthz", response_model_exclude_none=True)
    async def healthz(request: Request) -> Health:
        health = await service.health()
        return health if request.state.has_access else Health(status=health.status)
