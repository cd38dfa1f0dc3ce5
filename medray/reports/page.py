"""A report as one HTML page that asks for nothing from anywhere: its sheet, its charts and its few lines of script are inside it."""

import base64
import hashlib
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from medray import checkpoint, storage
from medray.reports import answer, behaviour, origin, samples, training
from medray.reports.blocks import Report
from medray.reports.study import StudyData
from medray.reports.style import page_css

REPORT = "report.html"  # in the run's folder
# Details are opened for the printer, which shows no closed ones.
_SCRIPT = "addEventListener('beforeprint',()=>document.querySelectorAll('details').forEach(held=>held.open=true))"
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'"


def compose(data: StudyData) -> Report:
    sections = [
        answer.asked(data),
        answer.leaderboard(data),
        answer.against(data),
        samples.answers(data),
        behaviour.mistakes(data),
        behaviour.confidence(data),
        behaviour.slices(data),
        training.curves(data),
        training.hyperparameters(data),
        training.cost(data),
        origin.audit(data),
        origin.repeat(data),
    ]
    return Report(
        title=data.board.study,
        day=data.day,
        headline=answer.headline(data),
        said=answer.said(data),
        facts=answer.facts(data),
        sections=[section for section in sections if section],
        footer=(f"medray {checkpoint.versions()['medray']}", data.run),
    )


def render(report: Report) -> str:
    """Everything but the charts is escaped by the template, and those escape themselves."""
    return _template().render(report=report, css=page_css(), script=_SCRIPT, policy=_POLICY) + "\n"


def write(report: Report, path: Path) -> Path:
    storage.write(path, render(report).encode())
    return path


@cache
def _template() -> Template:

    made = Environment(
        loader=PackageLoader("medray", "reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters["drawn"] = lambda drawing: Markup(drawing.svg())
    return made.get_template("report.html")
