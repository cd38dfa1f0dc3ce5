"""What `/v1/releases` reports of a release: its task, its form, its labels and its figures, from
its record and manifest."""

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from medray import plugins
from medray.data.formats.base.protocol import Form, FormatOptions
from medray.errors import ConfigError
from medray.registry.card import describe_release
from medray.registry.release import Release
from medray.serving.schemas import path_of
from medray.storage import checkpoint
from medray.storage.checkpoint import Manifest
from medray.tasks.base.protocol import Explainable, restore
from medray.tasks.base.questions import questions_of
from medray.tasks.base.route import Body
from medray.types import Question


class CardFigure(Body):
    metric: str
    validation: float | None
    test: float | None


class ReleaseCard(Body):
    """What a client needs to know about a release."""

    release: str
    version: int
    created: str
    task: str
    path: str = Field(description="the route that answers for it")
    form: Form = Field(description="the fields that a text consists of, as in its training data")
    terms: tuple[str, ...] = Field(
        (), description="the vocabulary of the form's terms, if its data has one"
    )
    labels: tuple[str, ...] = Field(description="the labels, or the kinds of mentions")
    questions: tuple[Question, ...] = Field((), exclude=True)
    has_explanations: bool = Field(False, description="whether /v1/explain answers for it")
    system: str | None = Field(None, description="the system prompt of a release that talks")
    base: str
    method: str
    figures: tuple[CardFigure, ...]
    num_test_rows: int | None = Field(None, description="null if the test rows were never used")
    sentences: tuple[str, ...] = Field(
        (),
        serialization_alias="said",
        description="sentences about its confidence, its lowest slice, and its test rows",
    )
    origin: dict[str, str]
    notes: str = ""


class ServedCard(ReleaseCard):
    id: str = Field(description="the value of `model` in a request")
    request: dict[str, Any] | None = Field(
        None, description="a body for /v1/decisions with the release's questions, if it has any"
    )


class Unavailable(Body):
    """A release without a card now, for example because its replicas scaled to zero."""

    id: str
    message: str


class ReleaseList(Body):
    data: tuple[ServedCard, ...]
    unavailable: tuple[Unavailable, ...] = ()


def card(release: Release, *, explanations: bool = False) -> ReleaseCard:
    folder, record = release.folder(), release.record
    manifest = checkpoint.read(folder)
    facts = describe_release(record, manifest)
    task = restore(manifest.task.options, manifest.task.state)
    return ReleaseCard(
        release=record.name,
        version=record.version,
        created=record.created,
        task=facts.task,
        path=path_of(facts.task),
        form=form(manifest),
        terms=tuple(audit(folder).get("terms", ())),
        labels=facts.labels or tuple(manifest.task.state.get("kinds", ())),
        questions=questions_of(task),
        has_explanations=explanations and isinstance(task, Explainable),
        system=manifest.task.options.get("system"),
        base=facts.base + (f" ({facts.note})" if facts.note else ""),
        method=facts.method,
        figures=tuple(
            CardFigure(metric=row.metric, validation=row.validation, test=row.test)
            for row in facts.figures
        ),
        num_test_rows=facts.num_test_rows,
        sentences=tuple(filter(None, (facts.openings, *facts.behavior))),
        origin=dict(facts.origin),
        notes=record.notes,
    )


def form(manifest: Manifest) -> Form:
    """Return the form of the release's data format. It is plain text if the release was trained
    elsewhere, or by a medray whose formats had other options."""
    raw = manifest.trial.get("data", {}).get("format")
    if not isinstance(raw, dict):
        return Form()
    try:
        options = plugins.find("data.formats", str(raw.get("name"))).Options.model_validate(raw)
    except (ConfigError, ValidationError):
        return Form()
    return options.form() if isinstance(options, FormatOptions) else Form()


def audit(folder: Path) -> dict[str, Any]:
    """Return the audit of its data set, or an empty dict if it was trained elsewhere."""
    try:
        audit = json.loads((folder / "audit.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return audit if isinstance(audit, dict) else {}
